"""Turns journal records into calls of MLflow, so that a record sent twice changes nothing the second time.

Metrics carry the time at which they were logged (MLflow keeps one of two equal points), pictures the name under which
they are stored, and a run is looked up by its key before it is made.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.tracking.environment import connect, error_code, is_permanent
from vitrail.tracking.journal import Record
from vitrail.tracking.store import artifact_location

RUN_KEY = "vitrail.run_key"
PARENT_RUN_KEY = "vitrail.parent_run_key"
BATCHED = ("metrics", "params", "tags")
"""Kinds of records that go together in one request."""

_KINDS = ("run", "files", "dataset", "finish")
"""The others, each a request of its own."""
_PARENT_WAIT_S = 60.0
_LOGGED_TABLES = "mlflow.loggedArtifacts"

Refuse = Callable[[Record, str], None]


class RefusedError(Exception):
    """A record that can never be sent, for a reason that lies in the record."""


class ParentMissingError(Exception):
    """The parent of a run has not been created yet; its own outbox may still be sending."""


@dataclass
class Delivery:
    """Sends records to one MLflow run; made again for every process, with what the last one learnt."""

    tracking_uri: str
    files: Path
    run_id: str | None = None
    experiment_id: str | None = None
    _client: Any = None
    _waiting_since: float | None = field(default=None, init=False)

    def send(self, records: Sequence[Record], *, refuse: Refuse) -> None:
        """Send records of one kind of request: one record, or several whose kinds are in `BATCHED`.

        What can never be sent is handed to `refuse` with the reason. Anything else that goes wrong is raised, and
        the same records may then be sent again.
        """
        if self._client is None:
            self._client = connect(self.tracking_uri)
        if records[0]["kind"] in BATCHED:
            self._send_batch(records, refuse)
            return
        record = records[0]
        if record["kind"] not in _KINDS:
            refuse(record, f"there are no records of kind {record['kind']!r}")
            return
        try:
            getattr(self, f"_send_{record['kind']}")(record)
        except Exception as error:
            # Without its run nothing else can be sent, so that record is never given up.
            if record["kind"] == "run" or not self._refusable(error):
                raise
            refuse(record, str(error))

    def _refusable(self, error: Exception) -> bool:
        return isinstance(error, RefusedError) or is_permanent(error, tracking_uri=self.tracking_uri)

    def _send_batch(self, records: Sequence[Record], refuse: Refuse) -> None:
        try:
            self._log(records)
        except Exception as error:
            if not self._refusable(error):
                raise
            # One bad value makes the server refuse the whole batch: find it by sending each value alone.
            for record in records:
                for key, value in record["values"].items():
                    self._log_alone({**record, "values": {key: value}}, refuse)

    def _log_alone(self, record: Record, refuse: Refuse) -> None:
        try:
            self._log([record])
        except Exception as error:
            if not self._refusable(error):
                raise
            refuse(record, str(error))

    def _log(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        batch: dict[str, list[Any]] = {"metrics": [], "params": [], "tags": []}
        for record in records:
            for key, value in record["values"].items():
                if record["kind"] == "metrics":
                    batch["metrics"].append(Metric(key, value, record["at_ms"], record["step"]))
                elif record["kind"] == "params":
                    batch["params"].append(Param(key, value))
                else:
                    batch["tags"].append(RunTag(key, value))
        self._client.log_batch(self.run_id, **batch, synchronous=True)

    def _send_run(self, record: Record) -> None:
        """Find the run of this key, or create it; a run found in another state is running again."""
        self.experiment_id = self._experiment(record["experiment"])
        run = find_run(self._client, self.experiment_id, record["run_key"])
        if run is None:
            tags = {**record["tags"], RUN_KEY: record["run_key"], **self._parent_tags(record)}
            run = self._client.create_run(
                self.experiment_id, start_time=record["at_ms"], tags=tags, run_name=record["run_name"]
            )
        elif run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        self.run_id = run.info.run_id

    def _parent_tags(self, record: Record) -> dict[str, str]:
        parent_key = record.get("parent_run_key")
        if parent_key is None:
            return {}
        parent = find_run(self._client, self.experiment_id, parent_key)
        if parent is not None:
            return {PARENT_RUN_KEY: parent_key, "mlflow.parentRunId": parent.info.run_id}
        self._waiting_since = self._waiting_since or time.monotonic()
        if time.monotonic() - self._waiting_since < _PARENT_WAIT_S:
            raise ParentMissingError(f"the parent run {parent_key!r} is not there yet")
        return {PARENT_RUN_KEY: parent_key}

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location(self.tracking_uri, name)))
        except MlflowException as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _send_files(self, record: Record) -> None:
        """Upload the files of a picture, a text or a table; `tables` names what the UI shows as a table."""
        if any(Path(name).name != name for name in record["files"]):
            raise RefusedError("it names files outside of the outbox")
        for name, artifact_file in record["files"].items():
            self._upload(self.files / name, artifact_file)
        if record.get("table"):
            self._announce_table(record["table"])
        for name in record["files"]:
            (self.files / name).unlink(missing_ok=True)

    def _upload(self, path: Path, artifact_file: str) -> None:
        if not path.exists():
            raise RefusedError(f"{path.name} is no longer in the outbox")
        folder, _, name = artifact_file.rpartition("/")
        with tempfile.TemporaryDirectory() as aside:  # MLflow uploads a file under its own name only
            named = Path(aside) / name
            named.symlink_to(path.resolve())
            self._client.log_artifact(self.run_id, str(named), folder or None)

    def _announce_table(self, artifact_file: str) -> None:
        tags = self._client.get_run(self.run_id).data.tags
        tables = json.loads(tags.get(_LOGGED_TABLES, "[]"))
        entry = {"path": artifact_file, "type": "table"}
        if entry not in tables:
            self._client.set_tag(self.run_id, _LOGGED_TABLES, json.dumps([*tables, entry]))

    def _send_dataset(self, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type="local",
            source=json.dumps({"uri": record["source"]}),
        )
        tags = [InputTag("mlflow.data.context", record["context"])]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _send_finish(self, record: Record) -> None:
        self._client.set_terminated(self.run_id, record["status"], record["at_ms"])


def find_run(client: Any, experiment_id: str | None, run_key: str) -> Any | None:
    """The run of this key, the oldest if a lost answer made two; None if there is none."""
    runs = client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return runs[0] if runs else None
