"""Evaluations kept with a version: counts of every image, and what predicting cost; made once for each data set.

The counts are a file of the logged model, their checksum a tag of the version.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitrail.errors import DataError
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.gate.evidence import PredictionCost
from vitrail.tracking.environment import as_default, connect, retry
from vitrail.tracking.registry import Version

_TAG = "vitrail.evaluation"
_FOLDER = "evaluations"
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Evaluation:
    """What a version makes of a validation split, and at what cost."""

    counts: ImageCounts
    cost: PredictionCost


def load_evaluation(version: Version, key: str, *, tracking_uri: str) -> Evaluation | None:
    """The evaluation that was stored under `key`; None where there is none.

    Raises:
        DataError: its file is missing or does not match its checksum.
    """
    note = version.tags.get(f"{_TAG}.{key}")
    if note is None or version.model_id is None:
        return None
    entry = json.loads(note)
    place = f"evaluation {key} of {version.uri}"
    with tempfile.TemporaryDirectory() as folder:
        data = _fetch(version.model_id, f"{_FOLDER}/{key}.npz", Path(folder), tracking_uri)
    if data is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(f"{place} is {'missing' if data is None else 'not what was stored'}; evaluate it again")
    return Evaluation(ImageCounts.from_bytes(data, place), PredictionCost(**entry["cost"]))


def store_evaluation(version: Version, key: str, evaluation: Evaluation, *, tracking_uri: str) -> None:
    """Keep an evaluation with the version; an earlier one of the same key is replaced."""
    if version.model_id is None:
        return
    model_id, data = version.model_id, evaluation.counts.to_bytes()
    entry = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "images": len(evaluation.counts),
        "mIoU": evaluation.counts.scores().miou,
        "cost": asdict(evaluation.cost),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    client = connect(tracking_uri)

    def call() -> None:
        with tempfile.TemporaryDirectory() as aside:
            (Path(aside) / f"{key}.npz").write_bytes(data)
            client.log_model_artifacts(model_id, aside, _FOLDER)
        client.set_model_version_tag(version.name, str(version.number), f"{_TAG}.{key}", json.dumps(entry))

    retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)


def _fetch(model_id: str, path: str, folder: Path, tracking_uri: str) -> bytes | None:
    from mlflow.artifacts import download_artifacts

    client = connect(tracking_uri)

    def call() -> bytes | None:
        if path not in {entry.path for entry in client.list_logged_model_artifacts(model_id, _FOLDER)}:
            return None
        place = f"{client.get_logged_model(model_id).artifact_location}/{path}"
        with as_default(tracking_uri):
            return Path(download_artifacts(artifact_uri=place, dst_path=str(folder))).read_bytes()

    return retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
