"""Weights of every known format in and out, with made-up tensors in the formats' own names."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm.models.vision_transformer
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from vitrail.cli_weights import weights_app
from vitrail.config import BackboneConfig, FCNHeadConfig, ModelConfig, MultiLevelNeckConfig, UPerHeadConfig
from vitrail.errors import UnknownNameError, UsageError
from vitrail.models.convert import import_weights, open_segmentor
from vitrail.models.naming import from_mmseg, to_mmseg
from vitrail.models.segmentor import Segmentor
from vitrail.models.weight_files import WeightFileError
from vitrail.models.weights import CoverageError, export_weights, load_into, load_pretrained, load_weights
from vitrail.recipes import get_recipe

BACKBONE = BackboneConfig(embed_dim=64, num_heads=1, depth=4, out_indices=(0, 1, 2, 3), img_size=64, final_norm=True)
CONFIG = ModelConfig(
    backbone=BACKBONE,
    neck=MultiLevelNeckConfig(),
    decode_head=UPerHeadConfig(channels=8),
    auxiliary_head=FCNHeadConfig(channels=8),
    num_classes=5,
)


def segmentor(seed: int = 0, **changes: object) -> Segmentor:
    torch.manual_seed(seed)
    return Segmentor(CONFIG.model_copy(update=changes)).eval()


def mmseg_state(model: Segmentor) -> dict[str, Tensor]:
    return {to_mmseg(name): tensor.clone() for name, tensor in model.state_dict().items()}


def timm_vit(seed: int = 1, *, img_size: int = 64, num_classes: int = 10) -> timm.models.VisionTransformer:
    torch.manual_seed(seed)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=img_size, embed_dim=64, depth=4, num_heads=1, num_classes=num_classes
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return vit


def assert_same(ours: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert set(ours) == set(want)
    assert all(torch.equal(ours[name], want[name]) for name in want)


def old_spelling(name: str) -> str:
    return name.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.")


@pytest.mark.parametrize(
    "rename", [str, old_spelling, from_mmseg, "module.{}".format], ids=["1.x", "0.14", "timm-like", "ddp"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_mmsegmentation_checkpoint_loads_in_every_spelling(rename: object, zipped: bool, tmp_path: Path) -> None:
    source = segmentor(0)
    state = {rename(name): tensor for name, tensor in mmseg_state(source).items()}
    path = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    model = segmentor(1)
    coverage = load_into(model, path)
    assert_same(dict(model.state_dict()), dict(source.state_dict()))
    assert (coverage.backbone, coverage.model) == (1.0, 1.0)
    assert not (coverage.missing or coverage.unexpected or coverage.dropped)
    assert coverage.format == "mmsegmentation"


def test_import_then_export_gives_mmsegmentation_its_own_tensors_back(tmp_path: Path) -> None:
    state = mmseg_state(segmentor())
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "in.pth")
    imported = import_weights(tmp_path / "in.pth", tmp_path / "model.safetensors")
    assert imported.model == CONFIG
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    export_weights(tensors, tmp_path / "out.pth", format="mmseg")
    assert_same(torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_import_then_export_gives_timm_its_own_tensors_back(suffix: str, tmp_path: Path) -> None:
    vit = timm_vit()
    path, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    save_file(vit.state_dict(), path) if suffix == ".safetensors" else torch.save(vit.state_dict(), path)
    import_weights(path, tmp_path / "model.safetensors")
    export_weights(load_weights(tmp_path / "model.safetensors")[0], out, format="timm")
    back = load_weights(out)[0]
    assert_same({name.removeprefix("backbone."): tensor for name, tensor in back.items()}, dict(vit.state_dict()))


def test_imported_segmentor_opens_with_the_same_output_and_its_recipe(tmp_path: Path) -> None:
    recipe = get_recipe("upernet_vit-nano_mln_128x128_1k")
    torch.manual_seed(0)
    source = Segmentor(recipe.with_classes(11).model).eval()
    torch.save({"state_dict": mmseg_state(source)}, tmp_path / "in.pth")
    import_weights(tmp_path / "in.pth", tmp_path / "model.safetensors")
    model, found = open_segmentor(tmp_path / "model.safetensors")
    assert found == recipe.with_classes(11)
    x = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))


def test_imported_backbone_is_not_opened_as_a_segmentor(tmp_path: Path) -> None:
    torch.save(timm_vit().state_dict(), tmp_path / "vit.pth")
    import_weights(tmp_path / "vit.pth", tmp_path / "model.safetensors")
    with pytest.raises(WeightFileError, match="backbone alone"):
        open_segmentor(tmp_path / "model.safetensors")


def test_heads_are_refused_where_the_recipe_has_a_neck_that_the_file_lacks(tmp_path: Path) -> None:
    source = Segmentor(get_recipe("upernet_vit-nano_128x128_1k").model)
    torch.save({"state_dict": mmseg_state(source)}, tmp_path / "in.pth")
    with pytest.raises(WeightFileError, match=r"missing neck\.\*"):
        import_weights(tmp_path / "in.pth", tmp_path / "out", recipe="upernet_vit-nano_mln_128x128_1k")


@pytest.mark.parametrize("entry", [None, "state_dict", "model"])
def test_timm_and_deit_weights_start_a_backbone(entry: str | None, tmp_path: Path) -> None:
    vit = timm_vit()
    torch.save({entry: vit.state_dict()} if entry else vit.state_dict(), tmp_path / "vit.pth")
    model = segmentor()
    coverage = load_pretrained(model, str(tmp_path / "vit.pth"))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens = vit.eval().forward_features(x)
        last = model.backbone(x)[-1]
    assert torch.allclose(last.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-4)
    assert coverage.format == ("deit" if entry == "model" else "timm")
    assert coverage.backbone == 1.0 and coverage.model < 1.0
    assert coverage.missing == ("neck.*", "decode_head.*", "auxiliary_head.*")
    assert coverage.dropped == ("backbone.head.weight", "backbone.head.bias")


def test_final_norm_of_a_file_is_unexpected_where_the_model_has_none(tmp_path: Path) -> None:
    torch.save(timm_vit().state_dict(), tmp_path / "vit.pth")
    model = segmentor(backbone=BACKBONE.model_copy(update={"final_norm": False}))
    assert load_into(model, tmp_path / "vit.pth").unexpected == ("backbone.norm.weight", "backbone.norm.bias")


def test_position_embedding_is_resized_without_antialias(tmp_path: Path) -> None:
    vit = timm_vit(img_size=96)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = segmentor()
    coverage = load_into(model, tmp_path / "vit.pth")
    assert (coverage.pos_embed_from, coverage.pos_embed_to) == ((6, 6), (4, 4))
    grid = vit.pos_embed[:, 1:].reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False, antialias=False)
    assert torch.equal(model.backbone.pos_embed[:, 1:], want.flatten(2).transpose(1, 2))
    assert torch.equal(model.backbone.pos_embed[:, 0], vit.pos_embed[:, 0])


def test_jax_weights_equal_timms_reading_of_them(tmp_path: Path) -> None:
    path = tmp_path / "vit.npz"
    np.savez(path, **jax_weights(np.random.default_rng(0)))
    vit = timm_vit()
    vit.load_pretrained(str(path))
    tensors, known = load_weights(path)
    assert known == "jax"
    assert_same({name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}, dict(vit.state_dict()))


def jax_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Names and shapes of a Flax ViT of 64 channels, 1 head, 4 blocks and 10 classes."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (16, 16, 3, 64),
        "embedding/bias": (64,),
        "cls": (1, 1, 64),
        "Transformer/posembed_input/pos_embedding": (1, 17, 64),
        "Transformer/encoder_norm/scale": (64,),
        "Transformer/encoder_norm/bias": (64,),
        "head/kernel": (64, 10),
        "head/bias": (10,),
    }
    for block in range(4):
        stem = f"Transformer/encoderblock_{block}"
        attention = f"{stem}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (64, 1, 64), f"{attention}/{part}/bias": (1, 64)}
        shapes |= {f"{attention}/out/kernel": (1, 64, 64), f"{attention}/out/bias": (64,)}
        shapes |= {f"{stem}/MlpBlock_3/Dense_0/kernel": (64, 256), f"{stem}/MlpBlock_3/Dense_0/bias": (256,)}
        shapes |= {f"{stem}/MlpBlock_3/Dense_1/kernel": (256, 64), f"{stem}/MlpBlock_3/Dense_1/bias": (64,)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{stem}/{norm}/scale": (64,), f"{stem}/{norm}/bias": (64,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_missing_patch_bias_becomes_zero_and_is_noted(tmp_path: Path) -> None:
    state = mmseg_state(segmentor())
    del state["backbone.patch_embed.projection.bias"]
    torch.save({"state_dict": state}, tmp_path / "in.pth")
    model = segmentor(1)
    torch.nn.init.ones_(model.backbone.patch_embed.proj.bias)
    coverage = load_into(model, tmp_path / "in.pth")
    assert not model.backbone.patch_embed.proj.bias.any()
    assert coverage.missing == ("backbone.patch_embed.proj.bias",)
    assert "patch-embedding bias" in coverage.notes[0]


def test_patch_bias_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": mmseg_state(segmentor())}, tmp_path / "in.pth")
    model = segmentor(backbone=BACKBONE.model_copy(update={"patch_bias": False}))
    with pytest.raises(WeightFileError, match="patch_bias=true"):
        load_into(model, tmp_path / "in.pth")


def test_other_class_count_leaves_the_classifiers_as_they_were(tmp_path: Path) -> None:
    source = segmentor(num_classes=150)
    torch.save({"state_dict": mmseg_state(source)}, tmp_path / "in.pth")
    model = segmentor(1)
    before = model.decode_head.conv_seg.weight.clone()
    coverage = load_into(model, tmp_path / "in.pth")
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert torch.equal(model.decode_head.bottleneck.conv.weight, source.decode_head.bottleneck.conv.weight)
    assert len(coverage.dropped) == 4
    assert coverage.notes == ("150 classes in the file, 5 in the model: classifiers start anew",)


def test_too_little_coverage_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    state = {n: t for n, t in timm_vit().state_dict().items() if not n.startswith("blocks.3.mlp")}
    torch.save(state, tmp_path / "vit.pth")
    model = segmentor()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CoverageError, match=r"backbone\.blocks\.3\.mlp\.fc1\.weight"):
        load_into(model, tmp_path / "vit.pth")
    assert_same(dict(model.state_dict()), before)
    assert load_into(model, tmp_path / "vit.pth", min_coverage=0.5).backbone < 0.9


def test_heads_of_another_recipe_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": mmseg_state(segmentor(neck=None))}, tmp_path / "in.pth")
    with pytest.raises(UsageError, match="different architectures"):
        import_weights(tmp_path / "in.pth", tmp_path / "out", recipe="upernet_vit-nano_mln_128x128_1k")


class Payload:
    """What a pickle must not be allowed to do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    checkpoint = {"state_dict": mmseg_state(segmentor()), "meta": Payload(str(trace))}
    torch.save(checkpoint, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightFileError, match="only tensors are read"):
        load_weights(tmp_path / "in.pth")
    assert not trace.exists()


def test_logs_that_mmengine_pickles_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    state = mmseg_state(segmentor())
    history = np.arange(5.0)
    torch.save({"state_dict": state, "message_hub": {"loss": history, "last": history[-1]}}, tmp_path / "in.pth")
    tensors, _ = load_weights(tmp_path / "in.pth")
    assert_same({to_mmseg(name): tensor for name, tensor in tensors.items()}, state)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(WeightFileError, match=r"in\.pth"):
        load_weights(tmp_path / "in.pth")


def test_weights_of_another_kind_of_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(WeightFileError, match="not the weights of a ViT"):
        load_weights(tmp_path / "resnet.pth")


def test_pretrained_none_leaves_the_model_alone() -> None:
    model = segmentor()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coverage = load_pretrained(model, "none")
    assert_same(dict(model.state_dict()), before)
    assert (coverage.backbone, coverage.sha256) == (0.0, None)
    json.dumps(coverage.summary())


def test_unknown_pretrained_name_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'deit_small_patch16_224\.fb_in1k'"):
        load_pretrained(segmentor(), "deit_smal_patch16_224.fb_in1k")


def test_pretrained_name_is_answered_offline_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="pass a file instead"):
        load_pretrained(segmentor(), "deit_small_patch16_224.fb_in1k")


def test_command_line_imports_and_exports(tmp_path: Path) -> None:
    state = mmseg_state(segmentor())
    torch.save({"state_dict": state}, tmp_path / "in.pth")
    out, back = tmp_path / "model.safetensors", tmp_path / "back.pth"
    result = CliRunner().invoke(weights_app, ["import", str(tmp_path / "in.pth"), str(out)])
    assert result.exit_code == 0, result.output
    assert "100.00% of the backbone's parameters" in result.output
    result = CliRunner().invoke(weights_app, ["export", str(out), str(back), "--format", "mmseg"])
    assert result.exit_code == 0, result.output
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)


def test_command_line_answers_a_wrong_file_with_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(weights_app, ["import", str(tmp_path / "absent.pth"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "there is no such file" in result.output
