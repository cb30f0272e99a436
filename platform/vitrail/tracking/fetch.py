"""The model that a user names: a checkpoint folder as it is, or one of an object store or of the registry, fetched."""

import re
from pathlib import Path

from vitrail.checkpoint_store import StoredCheckpoint
from vitrail.tracking.model_folder import DATA
from vitrail.tracking.registry import download, resolve


def fetch_model(model: str, *, root: Path, tracking_uri: str) -> Path:
    """A checkpoint folder for `model`: a path, `s3://` or `gs://`, or `models:/NAME@ALIAS`, or `models:/NAME/NUMBER`.

    A registered version is kept in `root/models`, verified, and downloaded once; a checkpoint of a store likewise in
    `VITRAIL_CACHE`.
    """
    if "://" in model:
        return StoredCheckpoint.at(model).fetch(state=False)
    if not model.startswith("models:"):
        return Path(model)
    version = resolve(model, tracking_uri=tracking_uri)
    name = re.sub(r"[^\w.-]", "_", version.name)
    folder = root / "models" / f"{name}-v{version.number}"
    return download(version.uri, folder, tracking_uri=tracking_uri) / DATA
