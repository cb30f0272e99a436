"""Looking after what is in use: aliased versions without a valid verdict, and those whose files or origins are gone."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vitrail.checkpoint import CheckpointError
from vitrail.errors import VitrailError
from vitrail.tracking.environment import TrackingError, connect, error_code, retry
from vitrail.tracking.promotion import REPORT_TAG, VERDICT_TAG, Move, history, succession
from vitrail.tracking.registry import WEIGHTS_TAG, Model, Version, download, list_models

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Finding:
    """Something wrong with an aliased version."""

    model: str
    alias: str
    version: int | None
    kind: str
    """`verdict`, `history`, `files`, `run` or `data`."""
    detail: str


def audit(*, tracking_uri: str, names: list[str] | None = None, files: bool = True) -> list[Finding]:
    """What is wrong with the versions that aliases point to, of all models or of those named.

    With `files`, every file of theirs is fetched and compared with its checksum.
    """
    findings: list[Finding] = []
    for model in list_models(tracking_uri=tracking_uri):
        if names is None or model.name in names:
            findings += _of_model(model, tracking_uri, files=files)
    return findings


def _of_model(model: Model, tracking_uri: str, *, files: bool) -> list[Finding]:
    findings = _lost_aliases(model, tracking_uri)
    by_number = {version.number: version for version in model.versions}
    checked: dict[int, list[tuple[str, str]]] = {}
    for alias, number in sorted(model.aliases.items()):
        version = by_number[number]
        moves = history(model.name, alias, tracking_uri=tracking_uri)
        problems = [("history", text) for text in _unrecorded(number, moves)]
        problems += [("verdict", text) for text in _verdict(version, moves)]
        if number not in checked:
            checked[number] = _of_version(version, tracking_uri, files=files)
        findings += [Finding(model.name, alias, number, kind, text) for kind, text in [*problems, *checked[number]]]
    return findings


def _of_version(version: Version, tracking_uri: str, *, files: bool) -> list[tuple[str, str]]:
    problems = [("files", text) for text in (_files(version, tracking_uri) if files else [])]
    problems += [("run", text) for text in _run(version, tracking_uri)]
    return problems + [("data", text) for text in _data(version)]


def _lost_aliases(model: Model, tracking_uri: str) -> list[Finding]:
    """Aliases that a history knows and the model does not: MLflow drops them with a version that is deleted."""
    client = connect(tracking_uri)
    tags = retry(lambda: client.get_registered_model(model.name), tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S).tags
    known = {key.split(".")[2] for key in tags if key.startswith("vitrail.history.")}
    findings = []
    for alias in sorted(known - {*model.aliases}):
        line = succession(history(model.name, alias, tracking_uri=tracking_uri))
        there = line[-1] in {version.number for version in model.versions}
        detail = f"version {line[-1]} had it last and {'has lost it' if there else 'has been deleted'}"
        findings.append(Finding(model.name, alias, line[-1], "history", f"nothing has this alias: {detail}"))
    return findings


def _unrecorded(number: int, moves: list[Move]) -> list[str]:
    if not moves:
        return ["given without a promotion"]
    last = moves[-1]
    if last.to_version != number:
        return [f"moved here outside of promotion: on record is version {last.to_version}, by {last.by}"]
    return []


def _verdict(version: Version, moves: list[Move]) -> list[str]:
    outcome = version.tags.get(VERDICT_TAG)
    if outcome is None:
        return ["never judged by the gate"]
    try:
        report = json.loads(version.tags[REPORT_TAG])
        judged = report["candidate"]["lineage"]["weights_sha256"]
        passed = report["passed"]
    except (KeyError, ValueError, TypeError):
        return ["its verdict cannot be read"]
    if judged != version.tags.get(WEIGHTS_TAG):
        return ["its verdict is on other weights"]
    forced = [move for move in moves if move.to_version == version.number and move.action == "force"]
    if (outcome != "pass" or not passed) and not forced:
        return ["it did not pass the gate, and nobody is on record for having forced it"]
    return []


def _files(version: Version, tracking_uri: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            download(version.uri, Path(folder) / "model", tracking_uri=tracking_uri)
        except CheckpointError as error:
            return [error.reason]
        except TrackingError:
            raise
        except VitrailError as error:
            return [str(error)]
    return []


def _run(version: Version, tracking_uri: str) -> list[str]:
    from mlflow.exceptions import MlflowException

    if version.run_id is None:
        return ["not linked to a run"]
    client, run_id = connect(tracking_uri), version.run_id

    def call() -> str | None:
        try:
            return str(client.get_run(run_id).info.lifecycle_stage)
        except MlflowException as error:
            if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    stage = retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    if stage == "active":
        return []
    return [f"its run {run_id} {'no longer exists' if stage is None else 'is deleted'}"]


def _data(version: Version) -> list[str]:
    from vitrail.data.manifest import Manifest

    place, fingerprint = version.tags.get("vitrail.data_uri"), version.tags.get("vitrail.data_fingerprint")
    if place is None:
        return ["it does not say where its data set lies"]
    try:
        found = Manifest.load(place).fingerprint
    except VitrailError as error:
        return [f"its data set cannot be read: {error}"]
    if found != fingerprint:
        return [f"{place} holds another data set now: {found[:12]}, not {(fingerprint or 'unknown')[:12]}"]
    return []
