"""A registered version as files: a model that MLflow loads anywhere, without this project.

    MLmodel, requirements.txt, …   MLflow's own: how to load it, and in which environment
    data/                          a checkpoint's folder without the training state
    code/                          the sources that inference needs, as a package of their own
    pictures/, MODEL_CARD.md       what a person looks at
    SHA256SUMS                     the checksums of all of these

Weights are safetensors and the rest is text, so that loading unpickles nothing.
"""

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.checkpoint import INFO, STATE, WEIGHTS, CheckpointError, CheckpointInfo, file_sha256, read_info, verify
from vitrail.tracking.card import model_card
from vitrail.tracking.environment import quiet_environment
from vitrail.tracking.model_folder import CARD, DATA, PICTURES, SUMS, write_sums
from vitrail.tracking.source_closure import SourceClosure

ENTRY = "vitrail.tracking.pyfunc_entry"
_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless"}
"""Distributions that are called otherwise than the package that they bring."""
_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class ServedFiles:
    """What `write_served_model` wrote."""

    sha256: dict[str, str]
    """Of every file, by its name in the folder."""
    pictures: dict[str, str]
    """Names of the pictures' files, by their titles."""


def write_served_model(
    checkpoint: Path, folder: Path, *, name: str, pictures: Mapping[str, NDArray[np.uint8]] | None = None
) -> ServedFiles:
    """Make the new `folder` a model of the checkpoint.

    The weights become a link to the checkpoint's.

    Args:
        name: the registered model's, for the card.
        pictures: RGB (H, W, 3), by their titles.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    info = read_info(checkpoint)
    weights = _checked_weights(checkpoint, info)
    closure = SourceClosure.of(ENTRY)
    _write_pyfunc(folder, closure)
    _write_data(checkpoint, folder / DATA, weights)
    named = _write_pictures(folder, pictures or {})
    (folder / CARD).write_text(model_card(info, name=name, weights_sha256=weights, pictures=named))
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sums = {file: file_sha256(path) for file, path in paths.items()}
    write_sums(folder, sums)
    return ServedFiles(sha256={**sums, SUMS: file_sha256(folder / SUMS)}, pictures=named)


def requirements(closure: SourceClosure) -> list[str]:
    """A pin per package that the sources import. Without a local label such as `+cpu`, which no other index has."""
    names = sorted(_DISTRIBUTIONS.get(package, package) for package in closure.imports)
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _checked_weights(checkpoint: Path, info: CheckpointInfo) -> str:
    """The checksum of the checkpoint's weights, once they and whatever else inference reads were found to match."""
    needed = {file: digest for file, digest in info.files.items() if file != STATE}
    if WEIGHTS not in needed:
        raise CheckpointError(str(checkpoint), f"its description does not list {WEIGHTS}")
    verify(checkpoint, info=info.model_copy(update={"files": needed}))
    return needed[WEIGHTS]


def _write_pyfunc(folder: Path, closure: SourceClosure) -> None:
    """MLflow's files and the sources. Without `data_path`, which would copy the weights: the entry gets the folder."""
    quiet_environment()
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    # A column of type binary would take the same from Python. Over HTTP, MLflow would decode its base64 itself: a text
    # that is none fails before our own code can say which image it was, and pixels as lists are refused.
    answer = {"label_map_png": DataType.string, "height": DataType.long, "width": DataType.long}
    answer["class_pixels"] = DataType.string
    anything = AnyType()  # type: ignore[no-untyped-call]
    signature = ModelSignature(
        inputs=Schema([ColSpec(anything, "image")]),
        outputs=Schema([ColSpec(kind, column) for column, kind in answer.items()]),
    )
    # It looks for pip beside the interpreter, where uv puts none.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks for an example of the input: megabytes, for images
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=closure.renamed(ENTRY),
            code_paths=[str(closure.write(Path(aside)))],
            signature=signature,
            pip_requirements=requirements(closure),
        )


def _write_data(checkpoint: Path, folder: Path, weights_sha256: str) -> None:
    """What training alone needs (its state) stays behind, and the description no longer lists it."""
    folder.mkdir()
    (folder / WEIGHTS).symlink_to((checkpoint / WEIGHTS).resolve())
    description = json.loads((checkpoint / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**description, "files": {WEIGHTS: weights_sha256}}, indent=1))


def _write_pictures(folder: Path, pictures: Mapping[str, NDArray[np.uint8]]) -> dict[str, str]:
    """JPEGs in the model's folder; returns their names in it, by title."""
    names: dict[str, str] = {}
    for number, (title, picture) in enumerate(pictures.items(), start=1):
        names[title] = f"{PICTURES}/{number}-{re.sub(r'[^A-Za-z0-9_-]', '_', title)[:80]}.jpg"
        ok, encoded = cv2.imencode(
            ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        )
        assert ok
        (folder / PICTURES).mkdir(exist_ok=True)
        (folder / names[title]).write_bytes(encoded.tobytes())
    return names
