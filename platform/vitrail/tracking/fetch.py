"""The model that a user names: a checkpoint folder as it is, or one of an object store or of the registry, fetched."""

import re
from pathlib import Path

from vitrail.checkpoint_store import StoredCheckpoint
from vitrail.stored_file import fetch_file, is_stored
from vitrail.tracking.model_folder import DATA
from vitrail.tracking.registry import download, resolve

_FILE = ".safetensors"
"""How a file that `vitrail weights import` wrote is called, in a store that has no folders to look for."""


def fetch_model(model: str, *, root: Path, tracking_uri: str) -> Path:
    """A checkpoint folder, or an imported file, for `model`: a path, `s3://` or `gs://`, or `models:/NAME@ALIAS`, or
    `models:/NAME/NUMBER`.

    A registered version is kept in `root/models`, verified, and downloaded once; a checkpoint of a store likewise in
    `VITRAIL_CACHE`.
    """
    if is_stored(model):
        if model.partition("?")[0].endswith(_FILE):
            return fetch_file(model)
        return StoredCheckpoint.at(model).fetch(state=False)
    if not model.startswith("models:"):
        return Path(model)
    version = resolve(model, tracking_uri=tracking_uri)
    name = re.sub(r"[^\w.-]", "_", version.name)
    folder = root / "models" / f"{name}-v{version.number}"
    return download(version.uri, folder, tracking_uri=tracking_uri) / DATA
