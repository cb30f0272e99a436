"""The arithmetic of a model, against what torch counts while the network runs in the plain order."""

import math

import pytest

from vitrail.models.flops import _backbone_macs, computed_flops, nominal_flops
from vitrail.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", ["upernet_vit-nano_128x128_1k", "upernet_vit-nano_ln_mln_128x128_1k"])
@pytest.mark.parametrize("crop_size", [128, 200])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_nominal_flops_are_those_of_the_plain_order(
    name: str, crop_size: int, auxiliary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.models.resized_conv._MIN_GAIN", math.inf)  # nothing is worth moving
    model = get_recipe(name).model
    nominal = nominal_flops(model, crop_size, auxiliary=auxiliary)
    assert nominal == computed_flops(model, crop_size, auxiliary=auxiliary)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("upernet_vit-b16_ln_mln_512x512_160k_ade20k", 887651340288),
        ("upernet_deit-s16_512x512_80k_ade20k", 123547699200),
        ("upernet_deit-s16_mln_512x512_160k_ade20k", 550370297856),
        ("upernet_deit-b16_512x512_80k_ade20k", 280767270912),
    ],
)
def test_nominal_flops_are_those_counted_in_mmsegmentation(name: str, flops: int) -> None:
    # FlopCounterMode over extract_feat and both heads of mmsegmentation 1.2.2, built from its own configs.
    assert nominal_flops(get_recipe(name).model, 512) == flops


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.published])
def test_every_published_row_is_computed_with_fewer(name: str) -> None:
    model = get_recipe(name).model
    assert 0.2 < computed_flops(model, 512) / nominal_flops(model, 512) < 1


def test_deit_small_is_as_large_as_published() -> None:
    # DeiT-S at 224 x 224 is given as 4.6 GMACs (Touvron et al. 2021, table 5), which counts attention too.
    model = get_recipe("upernet_deit-s16_512x512_160k_ade20k").model
    assert _backbone_macs(model, 14) == pytest.approx(4.6e9, rel=0.02)
