"""Overrides, identity and validation of configurations."""

import pytest

from vitrail.config import BackboneConfig, RunConfig
from vitrail.errors import UnknownNameError, UsageError
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.schedules import CosineSchedule, PolySchedule

NANO = get_recipe("upernet_vit-nano_mln_128x128_1k")


def run(**changes: object) -> RunConfig:
    values = {"name": "a", "recipe": NANO, "data": "/data", "data_fingerprint": "f", "folder": "/runs/a", **changes}
    return RunConfig.model_validate(values)


def test_override_changes_only_what_it_names() -> None:
    changed = override(NANO, ["schedule.peak_lr=2e-3"])
    assert changed.schedule.peak_lr == 2e-3
    assert changed.model_copy(update={"schedule": NANO.schedule}) == NANO


def test_override_of_a_kind_keeps_what_schedules_share() -> None:
    changed = override(NANO, ["schedule.kind=cosine", "schedule.min_lr=1e-6"])
    assert changed.schedule == CosineSchedule(
        peak_lr=NANO.schedule.peak_lr, warmup_steps=NANO.schedule.warmup_steps, min_lr=1e-6
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("total_stepz=5", "did you mean 'total_steps'"),
        ("schedule.peek_lr=1", "did you mean 'peak_lr'"),
        ("total_steps", "not of the form"),
        ("total_steps=0", "greater than 0"),
        ("total_steps=10", "warmup_steps=50 must be below total_steps=10"),
        ("schedule.kind=polly", "schedule"),
        ("model.backbone.num_heads=7", "must be divisible by num_heads=7"),
    ],
)
def test_wrong_override_names_the_fault(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(NANO, [assignment])


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PolySchedule().peak_lr = 1.0  # type: ignore[misc]


def test_digest_changes_with_any_field_and_survives_json() -> None:
    assert NANO.digest() != override(NANO, ["optimizer.eps=1e-7"]).digest()
    assert type(NANO).model_validate_json(NANO.model_dump_json()).digest() == NANO.digest()


def test_identity_ignores_machines_and_sees_the_seed() -> None:
    assert run(workers=4, cpus_per_worker=2).identity() == run().identity()
    assert run(seed=1).identity() != run().identity()
    assert run(data_fingerprint="g").run_key != run().run_key


def test_run_name_cannot_leave_its_folder() -> None:
    with pytest.raises(ValueError, match="name"):
        run(name="../elsewhere")


def test_out_indices_must_exist() -> None:
    with pytest.raises(ValueError, match="must be below depth=4"):
        BackboneConfig(embed_dim=8, num_heads=2, depth=4)


def test_unknown_recipe_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'upernet_deit-s16_mln_512x512_160k_ade20k'"):
        get_recipe("upernet_deit-s16_mnl_512x512_160k_ade20k")
