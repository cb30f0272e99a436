"""The pieces of one training step that do not need a cluster."""

import copy

import pytest
import torch
from torch import Tensor

from vitrail.config import ComputeConfig, Recipe
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.training.meter import Meter
from vitrail.training.optimizer import build_optimizer
from vitrail.training.step import LossModule, seed_step, train_step, validation_steps

NANO = get_recipe("upernet_vit-nano_mln_128x128_1k")
PLAIN = override(
    NANO,
    [
        "model.backbone.drop_path_rate=0",
        "model.decode_head.dropout_ratio=0",
        "model.auxiliary_head.dropout_ratio=0",
        "model.backbone.img_size=64",
        "model.num_classes=5",
    ],
)


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (count, 64, 64), dtype=torch.uint8, generator=generator)
    return images, torch.full((count, 2), 64), labels


def build(recipe: Recipe = PLAIN, **compute: object) -> tuple[LossModule, torch.optim.Optimizer]:
    torch.manual_seed(0)
    segmentor = Segmentor(recipe.model)
    module = LossModule(segmentor, ComputeConfig.model_validate(compute)).train()
    return module, build_optimizer(segmentor, recipe.optimizer, lr=1e-3)


def gradients(module: LossModule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def largest_distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the largest gradient of all; conv biases before a batch norm have none but noise."""
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_update_does_not_depend_on_micro_batches(micro_batch: int) -> None:
    whole, cut = build(), build()
    for module, _ in (whole, cut):
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()  # over micro-batches its statistics would be other ones
    expected = train_step(*whole, batch(4), lr=1e-3)
    found = train_step(*cut, batch(4), lr=1e-3, micro_batch=micro_batch)
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert largest_distance(gradients(cut[0]), gradients(whole[0])) < 1e-5


def test_recomputed_activations_give_the_same_gradients_under_dropout() -> None:
    kept, recomputed = build(NANO), build(NANO, checkpoint_activations=True)
    losses = []
    for module, optimizer in (kept, recomputed):
        seed_step(1, 2, 3)
        losses.append(train_step(module, optimizer, batch(2), lr=1e-3)["loss"])
    assert torch.equal(*losses)
    assert largest_distance(gradients(recomputed[0]), gradients(kept[0])) < 1e-6


def test_bf16_keeps_weights_and_losses_in_float32_near_those_of_float32() -> None:
    full, half = build(), build(precision="bf16")
    expected, found = (train_step(*each, batch(4), lr=1e-3) for each in (full, half))
    assert found["loss"].dtype == torch.float32
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=2e-2)
    assert {p.dtype for p in half[0].parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_network_gives_the_gradients_of_the_plain_one() -> None:
    # Half as deep: compiling takes as long as there are blocks.
    recipe = override(PLAIN, ["model.backbone.depth=4", "model.backbone.out_indices=[0,1,2,3]"])
    plain, compiled = build(recipe), build(recipe, compile=True)
    expected, found = (train_step(*each, batch(2), lr=1e-3) for each in (plain, compiled))
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert largest_distance(gradients(compiled[0]), gradients(plain[0])) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_that_is_not_finite_changes_nothing(value: float) -> None:
    module, optimizer = build()
    train_step(module, optimizer, batch(2), lr=1e-3)
    before = copy.deepcopy([module.state_dict(), optimizer.state_dict()["state"]])
    hook = module.segmentor.decode_head.register_forward_hook(lambda *_: _[-1] * value)
    assert not train_step(module, optimizer, batch(2, seed=1), lr=1e-3)["grad_norm"].isfinite()
    hook.remove()
    torch.testing.assert_close([module.state_dict(), optimizer.state_dict()["state"]], before, rtol=0, atol=0)
    assert train_step(module, optimizer, batch(2, seed=1), lr=1e-3)["grad_norm"].isfinite()
    assert not torch.equal(
        module.state_dict()["segmentor.backbone.pos_embed"], before[0]["segmentor.backbone.pos_embed"]
    )


def test_weight_scales_the_gradient() -> None:
    one, half = build(), build()
    train_step(*one, batch(2), lr=1e-3)
    train_step(*half, batch(2), lr=1e-3, weight=0.5)
    doubled = {name: 2 * value for name, value in gradients(half[0]).items()}
    assert largest_distance(doubled, gradients(one[0])) < 1e-6


def draw(seed: int, step: int, rank: int) -> float:
    seed_step(seed, step, rank)
    return float(torch.rand(()))


def test_random_numbers_depend_on_seed_step_and_rank_alone() -> None:
    first = draw(3, 100, 1)
    torch.rand(7)
    assert draw(3, 100, 1) == first
    assert len({first, draw(4, 100, 1), draw(3, 101, 1), draw(3, 100, 0)}) == 4


def test_large_seeds_are_accepted() -> None:
    assert 0 <= draw(2**62, 159_999, 4095) < 1


def test_last_step_is_always_validated() -> None:
    assert validation_steps(override(NANO, ["total_steps=500", "val_interval=200"])) == {200, 400, 500}
    assert validation_steps(override(NANO, ["total_steps=400", "val_interval=200"])) == {200, 400}
    assert validation_steps(override(NANO, ["total_steps=60", "val_interval=200"])) == {60}


def test_meter_averages_since_the_last_reading() -> None:
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"loss": torch.tensor(value)}, images=4, wait_s=0.0)
    assert meter.read()["loss"] == 2.0
    meter.add({"loss": torch.tensor(5.0)}, images=4, wait_s=0.0)
    reading = meter.read()
    assert reading["loss"] == 5.0
    assert reading["data_wait_share"] == 0.0
    assert reading["images_per_s"] > 0


def test_meter_without_steps_says_so() -> None:
    with pytest.raises(ValueError, match="no step"):
        Meter().read()
