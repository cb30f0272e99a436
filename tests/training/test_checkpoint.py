"""One checkpoint: its files, its checksums, its refusals, and what loading it does not do."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.checkpoint import (
    INFO,
    STATE,
    WEIGHTS,
    BestScore,
    CheckpointError,
    CheckpointInfo,
    CheckpointWriteError,
    DataSource,
    ScoreRecord,
    read_info,
    superseded,
    verify,
)
from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.errors import UsageError
from vitrail.recipes import get_recipe
from vitrail.training.checkpoint import load_state, load_weights, restore_rng_state, rng_state, save_checkpoint

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
        best=BestScore(mIoU=0.7, step=1),
        mlflow_run_id="0123",
    )


def save(root: Path, step: int, miou: float = 0.5, state: Mapping[str, Any] | None = None) -> Path:
    state = {"optimizer": {"lr": 0.1}, "step": step} if state is None else state
    saved = save_checkpoint(root, info(step, miou), weights=WEIGHT, state=state)
    assert saved.place.local is not None
    return saved.place.local


def test_saved_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    folder = save(tmp_path, 250)
    assert folder.name == "step_000250"
    assert torch.equal(load_weights(folder)["layer.weight"], WEIGHT["layer.weight"])
    assert load_state(folder) == {"optimizer": {"lr": 0.1}, "step": 250}
    found = verify(folder)
    assert found.model_copy(update={"files": {}, "versions": {}}) == info(250)
    assert set(found.files) == {WEIGHTS, STATE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_weights_and_state_are_the_same_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    noise = torch.randint(0, 2 if dtype is torch.bool else 256, (1 << 13,), dtype=torch.uint8)
    weights = {"w": noise.view(dtype).view(4, -1).T}  # any bits, NaN among them, and not contiguous
    state = {"moments": [weights["w"], (1, 0.1, None, "text")], 3: {"nan": float("nan")}}
    saved = save_checkpoint(tmp_path, info(1), weights=weights, state=state)
    folder = saved.fetch()
    moment, rest = load_state(folder)["moments"]
    assert rest == (1, 0.1, None, "text")
    for found in (load_weights(folder)["w"], moment):
        assert found.dtype == dtype and found.shape == weights["w"].shape
        assert torch.equal(*(each.contiguous().view(torch.uint8) for each in (found, weights["w"])))


def test_random_numbers_of_every_rank_go_on(tmp_path: Path) -> None:
    ranks = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        torch.rand(7)
        ranks.append((rng_state(), torch.rand(5)))
    saved = save_checkpoint(tmp_path, info(1), weights=WEIGHT, state={"step": 1}, rng=[state for state, _ in ranks])
    state = load_state(saved.fetch())
    for rank, (_, expected) in enumerate(ranks):
        assert restore_rng_state(state, rank)
        assert torch.equal(torch.rand(5), expected)
    assert not restore_rng_state(state, 2)
    assert not restore_rng_state({"step": 1}, 0)


@pytest.mark.parametrize("value", [lambda: None, np.float64(0.1), {1.5: 0}, [{"set": {1}}]])
def test_state_that_could_not_be_loaded_again_is_refused_and_nothing_is_left(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^state\['optimizer'\]\['x'\].* a checkpoint takes"):
        save(tmp_path, 1, state={"optimizer": {"x": value}})
    assert list(tmp_path.iterdir()) == []


def test_optimizer_of_torch_is_plain_enough(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = save(tmp_path, 1, state={"optimizer": optimizer.state_dict()})
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(load_state(folder)["optimizer"])
    for found, expected in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_same_step_again_gets_a_name_of_its_own(tmp_path: Path) -> None:
    assert [save(tmp_path, 7).name for _ in range(3)] == ["step_000007", "step_000007-1", "step_000007-2"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / STATE).unlink()
    with pytest.raises(CheckpointError, match=f"{STATE} is missing"):
        verify(folder)


def test_checkpoint_from_before_the_best_score_was_kept_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    values = json.loads((folder / INFO).read_text())
    del values["best"], values["mlflow_run_id"]
    (folder / INFO).write_text(json.dumps(values))
    found = read_info(folder)
    assert (found.format_version, found.step, found.best, found.mlflow_run_id) == (1, 1, None, None)
    assert CheckpointStore.at(tmp_path).newest() == StoredCheckpoint.at(folder)


def test_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    values = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**values, "format_version": 99, "a_new_field": 1}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        read_info(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1', '{"step": "x"}'])
def test_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INFO).write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        read_info(tmp_path)


def test_folder_without_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no checkpoint\.json"):
        read_info(tmp_path)


def test_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / STATE).write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be loaded \(UnpicklingError\)"):
        load_state(folder)


def test_write_error_crosses_processes_with_all_it_knows() -> None:
    error = CheckpointWriteError("/runs/x", 300, "No space left on device", 1_500_000_000, 2_000_000, "step_000250")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    for part in ("step 300", "/runs/x", "No space left", "needs 1,500.0 MB", "2.0 MB are free", "step_000250"):
        assert part in str(error)


@pytest.mark.parametrize(
    ("scored", "newest", "best", "deleted"),
    [
        ({}, 1, 2, []),
        ({"a": (1, 0.5)}, 1, 0, []),
        ({"a": (1, 0.9), "b": (2, 0.1), "c": (3, 0.2)}, 1, 0, ["a", "b"]),
        ({"a": (1, 0.9), "b": (2, 0.1), "c": (3, 0.2)}, 1, 1, ["b"]),
        ({"a": (1, 0.1), "b": (2, 0.2), "c": (3, 0.9)}, 1, 1, ["a", "b"]),  # the newest is the best
        ({"a": (1, 0.5), "b": (2, 0.5), "c": (3, 0.1)}, 1, 1, ["a"]),  # of equals, the later
        ({"a": (1, None), "b": (2, float("nan")), "c": (3, 0.0), "d": (4, None)}, 1, 3, ["a", "b"]),
        ({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.3), "d": (4, 0.2)}, 2, 1, ["b"]),
        ({"b": (2, 0.4), "a": (1, 0.5), "b-1": (2, 0.4)}, 1, 0, ["a", "b"]),  # of one step, the one saved later
        ({"a": (1, 0.5), "b": (2, 0.4)}, 5, 5, []),
        ({name: (step, 0.1 * step) for step, name in enumerate("abcd")}, 1, 5, []),
    ],
)
def test_all_but_the_newest_and_the_best_are_superseded(
    scored: dict[str, tuple[int, float | None]], newest: int, best: int, deleted: list[str]
) -> None:
    assert superseded(scored, newest=newest, best=best) == deleted


def test_the_newest_is_never_superseded() -> None:
    with pytest.raises(ValueError, match="newest=0 must be at least 1"):
        superseded({"a": (1, 0.5)}, newest=0, best=1)
