"""What a run tells MLflow. Every method returns at once: it writes to the run's outbox on disk, nothing else.

    tracker = start_run(tracking_uri=uri, experiment="ade20k", run_name=name, run_key=key, folder=folder)
    tracker.log_metrics({"train/loss": 1.25}, step=50)
    tracker.finish("FINISHED")

No secret is in what is written: texts and values go through `vitrail.secrets`.
A run has one writer: other workers use `NullTracker`, which has the same methods and does nothing.
"""

import io
import json
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vitrail.errors import UsageError
from vitrail.secrets import mask, masked
from vitrail.tracking.environment import current_user, job_tags
from vitrail.tracking.job_runs import run_page
from vitrail.tracking.journal import now_ms
from vitrail.tracking.outbox import Outbox

Status = Literal["FINISHED", "FAILED", "KILLED"]

_THUMBNAIL_SIDE = 256
"""Longest side of what MLflow's image grid shows; 256 is what its own client sends."""


def start_run(
    *,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    run_key: str,
    folder: Path,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_key: str | None = None,
) -> "MlflowTracker":
    """A tracker for the run that `run_key` names, new or continued; the server need not be there.

    `folder` belongs to the run and keeps what could not be sent yet, so it must outlive the process. The run is
    created by the outbox, which looks for the key first; a key names one run in its experiment.

    Raises:
        UsageError: a key that cannot be searched for.
    """
    for key in filter(None, (run_key, parent_run_key)):
        if not re.fullmatch(r"[\w\-. :/=+]{1,250}", key):
            raise UsageError(f"run_key {key!r} may hold letters, digits and _-. :/=+ only")
    outbox = Outbox(folder / "outbox", tracking_uri=tracking_uri)
    source = {
        "mlflow.user": current_user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        **job_tags(),
    }
    outbox.append(
        {
            "kind": "run",
            "at_ms": now_ms(),
            "experiment": experiment,
            "run_key": run_key,
            "run_name": run_name,
            "parent_run_key": parent_run_key,
            "tags": masked(source),
        }
    )
    tracker = MlflowTracker(outbox)
    tracker.log_params(params or {})
    tracker.set_tags(tags or {})
    return tracker


class MlflowTracker:
    """Writes one run. Made by `start_run`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has answered."""
        return self._outbox.run_id

    @property
    def url(self) -> str | None:
        """Address of the run's page; None for a local store (see `vitrail ui`) or while the id is not known."""
        if self.run_id is None:
            return None
        return run_page(self._outbox.tracking_uri, self._outbox.experiment_id, self.run_id)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of one step; what a name may not hold becomes `_`."""
        metrics = {_metric_name(key): float(value) for key, value in values.items()}
        self._append("metrics", values=metrics, step=step, at_ms=now_ms())

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log settings. MLflow refuses another value for a setting already logged; the refusal is put aside."""
        if values:
            self._append("params", values={key: mask(str(value)) for key, value in values.items()})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Set tags, replacing older values."""
        if values:
            self._append("tags", values={key: mask(str(value)) for key, value in values.items()})

    def log_image(self, key: str, rgb: np.ndarray, step: int) -> None:
        """Log a picture, uint8 (H, W, 3), for MLflow's grid; log one at step 0, where the grid's slider starts."""
        image = Image.fromarray(rgb)
        thumbnail = image.copy()
        thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        # The names of `MlflowClient.log_image` (3.17), fixed here so that sending twice makes no second picture.
        name = re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII).replace("/", "~")
        stem = f"images/{name}+step+{step}+timestamp+{now_ms()}+{uuid.uuid4()}"
        files = {
            self._keep(_encoded(image, "png"), ".png"): f"{stem}.png",
            self._keep(_encoded(thumbnail, "webp"), ".webp"): f"{stem}+compressed.webp",
        }
        self._append("files", files=files)
        self.set_tags({"mlflow.loggedImages": "True"})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Store a text as a file of the run, replacing an older one."""
        self.log_file_content(mask(text).encode(), artifact_file)

    def log_dict(self, value: Mapping[str, Any], artifact_file: str) -> None:
        """Store a JSON file."""
        self.log_text(json.dumps(masked(value), indent=2), artifact_file)

    def log_table(self, columns: Mapping[str, Sequence[Any]], artifact_file: str) -> None:
        """Store a table by columns, as a `.json` that MLflow shows as a table; replaces an older one."""
        rows = [[_plain(value) for value in row] for row in zip(*columns.values(), strict=True)]
        content = json.dumps({"columns": list(columns), "data": masked(rows)}).encode()
        self._append("files", files={self._keep(content, ".json"): artifact_file}, table=artifact_file)

    def log_file(self, path: Path, artifact_file: str) -> None:
        """Store a copy of a small file as it is now."""
        self.log_file_content(path.read_bytes(), artifact_file)

    def log_file_content(self, content: bytes, artifact_file: str) -> None:
        """Store bytes as a file of the run."""
        self._append("files", files={self._keep(content, Path(artifact_file).suffix): artifact_file})

    def log_dataset(self, name: str, *, digest: str, context: str, source: str) -> None:
        """Note a data set as an input of the run; `context` is "train", "val" and the like."""
        # MLflow holds at most 36 characters of a digest.
        self._append("dataset", name=name, digest=digest[:36], context=context, source=mask(source))

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until MLflow has all that was logged; False where that takes longer."""
        return self._outbox.flush(timeout_s)

    def finish(self, status: Status = "FINISHED", *, timeout_s: float = 30.0) -> bool:
        """End the run, waiting at most `timeout_s`; False where records are left for a later process to send."""
        self._append("finish", status=status, at_ms=now_ms())
        return self._outbox.close(timeout_s)

    def _append(self, kind: str, **fields: Any) -> None:
        self._outbox.append({"kind": kind, **fields})

    def _keep(self, content: bytes, suffix: str) -> str:
        return self._outbox.keep_file(content, suffix)


class NullTracker:
    """Tracks nothing, with the methods of `MlflowTracker`."""

    run_id: str | None = None
    url: str | None = None

    def log_metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def log_params(self, values: Mapping[str, Any]) -> None: ...

    def set_tags(self, values: Mapping[str, Any]) -> None: ...

    def log_image(self, key: str, rgb: np.ndarray, step: int) -> None: ...

    def log_text(self, text: str, artifact_file: str) -> None: ...

    def log_dict(self, value: Mapping[str, Any], artifact_file: str) -> None: ...

    def log_table(self, columns: Mapping[str, Sequence[Any]], artifact_file: str) -> None: ...

    def log_file(self, path: Path, artifact_file: str) -> None: ...

    def log_file_content(self, content: bytes, artifact_file: str) -> None: ...

    def log_dataset(self, name: str, *, digest: str, context: str, source: str) -> None: ...

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Nothing is ever left."""
        return True

    def finish(self, status: Status = "FINISHED", *, timeout_s: float = 30.0) -> bool:
        """Nothing is ever left."""
        return True


Tracker = MlflowTracker | NullTracker


def _metric_name(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)


def _encoded(image: Image.Image, format_name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """A value that JSON knows: numbers of numpy become Python's, and what is not finite becomes null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
