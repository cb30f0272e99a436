"""The network of a checkpoint, from the folder alone."""

from pathlib import Path

from safetensors.torch import load_file

from vitrail.checkpoint import STATE, WEIGHTS, CheckpointError, CheckpointInfo, read_info, verify
from vitrail.models.segmentor import Segmentor


def restore_segmentor(folder: Path) -> tuple[Segmentor, CheckpointInfo]:
    """The network in eval mode on the CPU, its files checked against their checksums, and what it is.

    `state.pt` may be absent, as in a registered model.

    Raises:
        UsageError: there is no checkpoint in the folder.
        CheckpointError: it is damaged.
    """
    info = read_info(folder)
    needed = {name: digest for name, digest in info.files.items() if name != STATE}
    if WEIGHTS not in needed:
        raise CheckpointError(str(folder), f"its description does not list {WEIGHTS}")
    verify(folder, info=info.model_copy(update={"files": needed}))
    model = Segmentor(info.recipe.model)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval(), info
