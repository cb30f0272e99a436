"""Checkpoints: complete or absent, verified, and free of code."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from vitrail.checkpoint import (
    INFO,
    STATE,
    WEIGHTS,
    CheckpointError,
    CheckpointInfo,
    DataSource,
    ScoreRecord,
    best_checkpoint,
    latest_checkpoint,
    read_info,
    verify,
)
from vitrail.errors import UsageError
from vitrail.recipes import get_recipe
from vitrail.training.checkpoint import load_state, load_weights, save_checkpoint

WEIGHT = {"layer.weight": torch.arange(6.0).view(2, 3)}


def info(step: int, miou: float = 0.5) -> CheckpointInfo:
    return CheckpointInfo(
        step=step,
        recipe=get_recipe("upernet_vit-nano_128x128_1k"),
        classes=("a",),
        palette=((1, 2, 3),),
        reduce_zero_label=True,
        data=DataSource(name="tiny", fingerprint="f", val_images=1),
        seed=0,
        run_key="run",
        scores=ScoreRecord(mIoU=miou, mAcc=0.5, aAcc=0.5, images=1, iou=(None,)),
    )


def save(root: Path, step: int, miou: float = 0.5) -> Path:
    return save_checkpoint(root, info(step, miou), weights=WEIGHT, state={"optimizer": {"lr": 0.1}, "step": step})


def test_saved_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    folder = save(tmp_path, 250)
    assert folder.name == "step_000250"
    assert torch.equal(load_weights(folder)["layer.weight"], WEIGHT["layer.weight"])
    assert load_state(folder) == {"optimizer": {"lr": 0.1}, "step": 250}
    found = verify(folder)
    assert found.model_copy(update={"files": {}, "versions": {}}) == info(250)
    assert set(found.files) == {WEIGHTS, STATE}


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="pickle"):
        save_checkpoint(tmp_path, info(1), weights=WEIGHT, state={"function": lambda: None})
    assert list(tmp_path.iterdir()) == []


def test_same_step_again_gets_a_name_of_its_own(tmp_path: Path) -> None:
    assert {save(tmp_path, 7).name, save(tmp_path, 7).name} == {"step_000007", "step_000007-1"}


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
def test_damaged_newest_is_passed_over_with_a_warning(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    data = bytearray((newer / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newer / name).write_bytes(data)
    with pytest.warns(UserWarning, match="does not match its checksum"):
        assert latest_checkpoint(tmp_path) == older


def test_missing_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / STATE).unlink()
    with pytest.raises(CheckpointError, match=f"{STATE} is missing"):
        verify(folder)


def test_best_is_the_highest_score_and_the_latest_the_last_step(tmp_path: Path) -> None:
    best, _, last = save(tmp_path, 1, 0.7), save(tmp_path, 2, 0.2), save(tmp_path, 3, 0.6)
    assert best_checkpoint(tmp_path) == best
    assert latest_checkpoint(tmp_path) == last


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert best_checkpoint(tmp_path) is None


def test_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    values = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**values, "format_version": 99, "a_new_field": 1}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        read_info(folder)


def test_folder_without_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no checkpoint\.json"):
        read_info(tmp_path)


def test_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / STATE).write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError):
        load_state(folder)
