"""The model's shapes, its traps against plain formulas, and what training needs of it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vitrail.config import BackboneConfig, FCNHeadConfig, ModelConfig, MultiLevelNeckConfig, UPerHeadConfig
from vitrail.models.loss import segmentation_loss
from vitrail.models.neck import MultiLevelNeck
from vitrail.models.normalize import MEAN_RGB, STD_RGB, normalize
from vitrail.models.segmentor import Segmentor
from vitrail.models.vit import VisionTransformer, resize_pos_embed
from vitrail.recipes import RECIPES

BACKBONE = BackboneConfig(embed_dim=32, num_heads=2, depth=4, out_indices=(0, 1, 2, 3), img_size=64)
TINY = ModelConfig(
    backbone=BACKBONE,
    neck=MultiLevelNeckConfig(),
    decode_head=UPerHeadConfig(channels=8),
    auxiliary_head=FCNHeadConfig(channels=8),
    num_classes=5,
)


@pytest.mark.parametrize("neck", [None, MultiLevelNeckConfig()])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 75)])
def test_shapes_follow_the_strides(neck: MultiLevelNeckConfig | None, height: int, width: int) -> None:
    model = Segmentor(TINY.model_copy(update={"neck": neck})).eval()
    x = torch.randn(2, 3, height, width)
    grid_h, grid_w = -(-height // 16), -(-width // 16)
    scales = neck.scales if neck else (1, 1, 1, 1)
    with torch.inference_mode():
        levels, logits = model.extract_features(x), model(x)
    assert [tuple(level.shape) for level in levels] == [(2, 32, int(grid_h * s), int(grid_w * s)) for s in scales]
    assert logits.shape == (2, 5, *levels[0].shape[-2:])


def test_every_recipe_builds() -> None:
    for recipe in RECIPES.values():
        with torch.device("meta"):
            assert Segmentor(recipe.model).config == recipe.model


def test_padding_has_the_mean_colour_at_the_bottom_and_right() -> None:
    vit = VisionTransformer(BACKBONE).eval()
    x = torch.randn(1, 3, 50, 61)
    with torch.inference_mode():
        for ours, padded in zip(vit(x), vit(F.pad(x, (0, 3, 0, 14))), strict=True):
            assert torch.equal(ours, padded)


def test_final_norm_changes_only_the_last_output() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(BACKBONE.model_copy(update={"final_norm": True})).eval()
    plain = VisionTransformer(BACKBONE).eval()
    plain.load_state_dict(vit.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        normed, bare = vit(x), plain(x)
    assert all(torch.equal(a, b) for a, b in zip(normed[:3], bare[:3], strict=True))
    want = F.layer_norm(bare[3].permute(0, 2, 3, 1), (32,), eps=1e-6).permute(0, 3, 1, 2)
    assert torch.allclose(normed[3], want, atol=1e-6)
    assert not torch.allclose(normed[3], bare[3], atol=0.1)


def test_positions_are_compared_by_count_not_by_shape() -> None:
    pos_embed = torch.randn(1, 1 + 32 * 32, 8)
    assert resize_pos_embed(pos_embed, (16, 64)) is pos_embed
    assert resize_pos_embed(pos_embed, (32, 43)).shape == (1, 1 + 32 * 43, 8)


def test_stochastic_depth_is_on_both_branches_unless_asked() -> None:
    blocks = VisionTransformer(BACKBONE.model_copy(update={"drop_path_rate": 0.3})).blocks
    assert [getattr(b.drop_path1, "drop_prob", 0) for b in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [getattr(b.drop_path2, "drop_prob", 0) for b in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    blocks = VisionTransformer(BACKBONE.model_copy(update={"drop_path_rate": 0.3, "drop_path_attn": False})).blocks
    assert all(isinstance(b.drop_path1, nn.Identity) for b in blocks)
    assert [getattr(b.drop_path2, "drop_prob", 0) for b in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_patch_bias_can_be_left_out() -> None:
    names = Segmentor(TINY.model_copy(update={"backbone": BACKBONE.model_copy(update={"patch_bias": False})}))
    assert "backbone.patch_embed.proj.bias" not in names.state_dict()
    assert "backbone.patch_embed.proj.bias" in Segmentor(TINY).state_dict()


def test_neck_halves_odd_sizes_with_a_step_of_exactly_two() -> None:
    neck = MultiLevelNeck([1], 1, scales=[0.5])
    for conv in (neck.lateral_convs[0].conv, neck.convs[0].conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    ramp = torch.arange(43.0).expand(1, 1, 43, 43)
    with torch.inference_mode():
        row = neck([ramp])[0][0, 0, 0]
    assert torch.allclose(row, 0.5 + 2 * torch.arange(21.0))  # a resize by size would step by 43 / 21


def test_random_weights_have_mmsegmentations_spread() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(BackboneConfig(embed_dim=256, num_heads=4, depth=4, out_indices=(0, 1, 2, 3)))
    block = vit.blocks[0]
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert 0 < block.mlp.fc1.bias.abs().max() < 1e-5
    assert block.attn.qkv.weight.abs().max().item() == pytest.approx((6 / (4 * 256)) ** 0.5, rel=0.01)
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx((2 / (3 * 256)) ** 0.5, rel=0.05)
    assert not block.attn.qkv.bias.any() and not vit.patch_embed.proj.bias.any()


def test_loss_counts_ignored_pixels_in_its_mean() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 12, 20))
    labels[:, 6:] = 255
    loss, accuracy = segmentation_loss(logits, labels)
    upsampled = F.interpolate(logits, size=(12, 20), mode="bilinear")
    log_probabilities = upsampled.log_softmax(1)
    total, right = 0.0, 0
    for n in range(2):
        for y in range(6):
            for x in range(20):
                total -= log_probabilities[n, labels[n, y, x], y, x].item()
                right += int(upsampled[n, :, y, x].argmax() == labels[n, y, x])
    assert loss.item() == pytest.approx(total / (2 * 12 * 20), rel=1e-5)
    assert accuracy.item() == pytest.approx(100 * right / (2 * 6 * 20))


def test_loss_of_a_batch_without_labels_is_zero() -> None:
    loss, accuracy = segmentation_loss(torch.randn(1, 4, 3, 3), torch.full((1, 6, 6), 255))
    assert (loss.item(), accuracy.item()) == (0.0, 0.0)


def test_losses_add_up_and_reach_every_parameter() -> None:
    model = Segmentor(TINY).train()
    losses = model.loss(torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8))
    assert set(losses) == {"loss", "decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    assert torch.equal(losses["loss"], losses["decode.loss_ce"] + losses["aux.loss_ce"])
    losses["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_normalising_leaves_zero_where_the_image_was_padded() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 10), dtype=torch.uint8)
    sizes = torch.tensor([[8, 10], [5, 7]])
    x = normalize(images, sizes)
    want = (images.double() - torch.tensor(MEAN_RGB).view(3, 1, 1)) / torch.tensor(STD_RGB).view(3, 1, 1)
    assert torch.allclose(x[0].double(), want[0], atol=1e-5)
    assert torch.allclose(x[1, :, :5, :7].double(), want[1, :, :5, :7], atol=1e-5)
    assert not x[1, :, 5:].any() and not x[1, :, :, 7:].any()
    assert torch.equal(normalize(images), normalize(images, torch.tensor([[8, 10], [8, 10]])))
