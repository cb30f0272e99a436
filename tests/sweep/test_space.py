"""What a sweep would try, from a file or from flags, and what is said about a space that makes no sense."""

from pathlib import Path
from typing import Any

import pytest

from vitrail.errors import UnknownNameError, UsageError
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.schedules import CosineSchedule, PolySchedule
from vitrail.sweep.space import SearchSpace, apply, parse_vary, trial_name

NANO = "upernet_vit-nano_mln_128x128_1k"
BASE = get_recipe(NANO)


def space(**changes: Any) -> SearchSpace:
    return SearchSpace.checked(**{"recipe": NANO, "vary": {"neck": ["none", "mln"]}, **changes})


def test_grid_is_every_combination() -> None:
    found = space(vary={"neck": ["none", "ln_mln"], "schedule": ["poly", "cosine"], "lr": [1e-3, 2e-3]})
    assert found.size == 8
    assert len({tuple(one.items()) for one in found.configurations()}) == 8
    assert {"neck": "ln_mln", "schedule": "cosine", "lr": 2e-3} in found.configurations()


def test_configuration_changes_what_it_names_and_nothing_else() -> None:
    recipe = apply(BASE, {"lr": 2e-3, "schedule": "cosine", "neck": "ln_mln", "layer_decay": 0.75, "drop_path": 0.2})
    assert isinstance(recipe.schedule, CosineSchedule)
    assert recipe.schedule.peak_lr == 2e-3
    assert recipe.model.backbone.final_norm
    want = override(
        BASE,
        [
            "schedule.kind=cosine",
            "schedule.peak_lr=0.002",
            "model.backbone.final_norm=true",
            "optimizer.layer_decay=0.75",
            "model.backbone.drop_path_rate=0.2",
        ],
    )
    assert recipe == want


def test_backbone_brings_its_weights_unless_the_recipe_starts_from_none() -> None:
    published = get_recipe("upernet_deit-s16_mln_512x512_160k_ade20k")
    base = apply(published, {"backbone": "vit-b16"})
    row = get_recipe("upernet_vit-b16_ln_mln_512x512_160k_ade20k")
    assert base.pretrained == row.pretrained
    assert base.model.backbone == row.model.backbone.model_copy(update={"final_norm": False})
    assert apply(BASE, {"backbone": "deit-s16"}).pretrained is None


def test_file_says_all_and_flags_replace_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "necks.toml"
    file.write_text(
        f'recipe = "{NANO}"\nset = ["total_steps=80"]\nseeds = 2\nsearch = "random"\nsamples = 5\n'
        '[vary]\nneck = ["none", "mln"]\nlr = { low = 1e-4, high = 1e-2, log = true }\n'
    )
    found = SearchSpace.named(str(file), seeds=3, samples=None, set=["val_interval=40"])
    assert (found.base.total_steps, found.base.val_interval) == (80, 40)
    assert (found.seeds, found.samples, found.search) == (3, 5, "random")
    assert isinstance(apply(found.base, found.configurations()[0]).schedule, PolySchedule)


def test_shipped_space_is_good() -> None:
    file = Path(__file__).parents[2] / "jobs" / "spaces" / "necks.toml"
    found = SearchSpace.named(str(file))
    assert found.size * found.seeds == 12


def test_random_search_draws_the_same_distinct_configurations_every_time() -> None:
    vary = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "neck": ["none", "mln"]}
    found = space(vary=vary, search="random", samples=40)
    drawn = found.configurations()
    assert drawn == space(vary=vary, search="random", samples=40).configurations()
    assert len({tuple(one.items()) for one in drawn}) == 40
    rates = [float(one["lr"]) for one in drawn]
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-2
    below = sum(rate < 1e-3 for rate in rates)  # half of them, if logarithms are equally likely
    assert 10 <= below <= 30


def test_random_search_of_a_small_space_draws_each_configuration_once() -> None:
    assert space(search="random", samples=9).size == 2


def test_flags_name_choices_ranges_and_logarithmic_ranges() -> None:
    assert parse_vary(["neck=none,mln", "steps=100,200", "lr=log:1e-4..1e-2", "warmup=10..50", "drop_path=0..0.3"]) == {
        "neck": ["none", "mln"],
        "steps": [100, 200],
        "lr": {"low": 1e-4, "high": 1e-2, "log": True, "integer": False},
        "warmup": {"low": 10, "high": 50, "log": False, "integer": True},
        "drop_path": {"low": 0, "high": 0.3, "log": False, "integer": False},
    }
    with pytest.raises(UsageError, match="NAME=A,B"):
        parse_vary(["neck"])


def test_trial_names_are_folders_that_tell_trials_apart() -> None:
    names = {
        trial_name({"neck": neck, "lr": lr}, seed) for neck in ("none", "mln") for lr in (1e-5, 1) for seed in (0, 1)
    }
    assert len(names) == 8
    assert "mln-lr1e-05-seed1" in names


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vary": {"neck": ["mlnn"]}}, UnknownNameError, "unknown neck 'mlnn'; did you mean 'mln'"),
        ({"vary": {"nek": ["mln"]}}, UnknownNameError, "unknown dimension 'nek'; did you mean 'neck'"),
        ({"vary": {"schedule": ["polly"]}}, UsageError, "schedule"),
        ({"vary": {"schedule.peak_rl": [1]}}, UnknownNameError, "did you mean 'peak_lr'"),
        ({"vary": {"warmup": [5000]}}, UsageError, "must be below total_steps"),
        ({"vary": {"steps": [40, 400], "warmup": [20, 50]}}, UsageError, "must be below total_steps=40"),
        ({"vary": {}}, UsageError, "vary"),
        ({"vary": {"neck": []}}, UsageError, "empty list leaves nothing to try"),
        ({"vary": {"neck": ["mln", "mln"]}}, UsageError, "listed twice"),
        ({"vary": {"lr": {"low": 1.0, "high": 0.1}}}, UsageError, "must be below high"),
        ({"vary": {"lr": {"low": 1e-4, "high": 1e-3}}}, UsageError, "a grid needs lists, but lr is a range"),
        ({"search": "random"}, UsageError, "needs samples"),
        ({"samples": 3}, UsageError, "a grid tries every combination"),
        ({"scheduler": "pbt"}, UsageError, "'pbt' pauses trials or copies weights"),
        ({"recipe": "upernet_vit-nanno_mln_128x128_1k"}, UnknownNameError, "did you mean"),
        ({"sede": 3}, UsageError, "sede"),
    ],
)
def test_space_that_makes_no_sense_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        space(**changes)


def test_nothing_to_vary_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is varied"):
        SearchSpace.named(NANO)
    with pytest.raises(UsageError, match="cannot read the search space"):
        SearchSpace.named(str(tmp_path / "absent.toml"))
