"""A script's arguments as objects, of which the script and a dry run make the same plan."""

from pathlib import Path

import pytest

from vitrail.cluster.asked import SweepAsked, TrainingAsked, asked_by
from vitrail.cluster.jobs.request import parsed_arguments
from vitrail.errors import UsageError

ROOT = Path(__file__).parents[2]
NANO = "upernet_vit-nano_mln_128x128_1k"


def asked(script: str, *arguments: str) -> TrainingAsked | SweepAsked | None:
    return asked_by(parsed_arguments(ROOT / script, arguments))


def test_training_run_is_understood() -> None:
    found = asked("jobs/train.py", NANO, "--data", "/d", "--steps", "80", "--set", "global_batch=4", "--root", "/r")
    assert isinstance(found, TrainingAsked)
    assert (found.changed_recipe.total_steps, found.changed_recipe.global_batch) == (80, 4)
    assert (found.root, found.compute.precision) == (Path("/r"), "fp32")
    gpus = asked("jobs/train.py", NANO, "--data", "/d", "--gpus-per-worker", "1", "--pretrained", "none")
    assert gpus is not None and gpus.compute.precision == "bf16"
    assert gpus.base is not None and gpus.base.pretrained is None


def test_sweep_is_understood() -> None:
    found = asked("jobs/tune.py", NANO, "--data", "/d", "--vary", "neck=none,mln", "--seeds", "3")
    assert isinstance(found, SweepAsked)
    assert found.search_space is not None and (found.search_space.size, found.search_space.seeds) == (2, 3)
    going_on = asked("jobs/tune.py", "--resume", "necks")
    assert going_on is not None and going_on.base is None


def test_other_scripts_are_not() -> None:
    assert asked("jobs/evaluate.py", "models:/scenes@champion", "--data", "/d") is None


def test_wrong_arguments_are_refused_without_a_cluster() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        asked("jobs/train.py", NANO, "--data", "/d", "--set", "schedule.peek_lr=1")
    with pytest.raises(UsageError, match="micro_batch"):
        asked("jobs/train.py", NANO, "--data", "/d", "--micro-batch", "some")
    with pytest.raises(UsageError, match="leave them out"):
        asked("jobs/tune.py", NANO, "--resume", "necks")
