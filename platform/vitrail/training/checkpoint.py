"""Writing and loading checkpoints: see `vitrail.checkpoint` for what they are, `vitrail.checkpoint_store` for where.

Loading runs no code.
"""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail import __version__
from vitrail.checkpoint import STATE, WEIGHTS, CheckpointError, CheckpointInfo, ScoreRecord
from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.data.storage import Place
from vitrail.evaluation.scores import Scores
from vitrail.revision import code_revision

_PLAIN = (bool, int, float, str, bytes, type(None))


def save_checkpoint(
    root: Place,
    info: CheckpointInfo,
    *,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    rng: Sequence[Mapping[str, Tensor]] = (),
) -> StoredCheckpoint:
    """Add a checkpoint to those in `root`, a folder or an object store. It is complete when it is there.

    `state` is made of tensors, numbers and text in dicts, lists and tuples. `rng` holds the `rng_state` of every rank,
    where a resumed run needs them; it becomes the state's entry "rng".

    Raises:
        CheckpointWriteError: the disk is full, or the store refuses.
        TypeError: `state` holds what could not be loaded again without running code.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    whole = {**state, "rng": [dict(each) for each in rng]} if rng else dict(state)
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors.values(), *_tensors(whole)))
    versions = {"vitrail": __version__, "torch": torch.__version__, "code": code_revision()}
    return CheckpointStore.at(root).save(
        info.model_copy(update={"versions": versions}),
        partial(_write, weights=tensors, state=whole),
        size_bytes=size_bytes,
    )


def rng_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The states of this process's random number generators, as bytes: torch's on the CPU, and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng_state(state: Mapping[str, Any], rank: int, device: torch.device | str = "cpu") -> bool:
    """Go on with the random numbers of `rank` in a loaded state; False where it has none, as with more workers now."""
    states = state.get("rng", [])
    if rank >= len(states):
        return False
    torch.set_rng_state(states[rank]["cpu"])
    if torch.device(device).type == "cuda" and "cuda" in states[rank]:
        torch.cuda.set_rng_state(states[rank]["cuda"], device)
    return True


def score_record(scores: Scores, images: int) -> ScoreRecord:
    """Scores of so many images as a checkpoint keeps them: NaN becomes None, which JSON can hold."""
    iou = tuple(None if value != value else float(value) for value in scores.iou)
    return ScoreRecord(mIoU=scores.miou, mAcc=scores.macc, aAcc=scores.aacc, images=images, iou=iou)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The model's state dict, on the CPU."""
    return load_file(folder / WEIGHTS)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state on the CPU: optimiser, step, and where they were saved the random states of all ranks.

    Raises:
        CheckpointError: it is damaged, or would run code.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(str(folder), f"{STATE} cannot be loaded ({type(error).__name__})") from error
    return state


def _write(folder: Path, *, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Both libraries report a full disk as an error of their own, of which the system's is a part."""
    try:
        save_file(dict(weights), folder / WEIGHTS)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    try:
        with (folder / STATE).open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _tensors(value: Any, where: str = "state") -> Iterator[Tensor]:
    """All tensors in a state; raises TypeError at anything that `weights_only=True` might not load."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}; a checkpoint takes text and integers")
            yield from _tensors(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{where}[{index}]")
    elif isinstance(value, Tensor):
        yield value
    elif type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value).__name__}, which could not be loaded again without running code; "
            "a checkpoint takes tensors, numbers and text, in dicts, lists and tuples"
        )
