"""Moving an alias: through the gate, on record, and back.

MLflow's aliases have no history, and setting one compares with nothing. So every move is written down as tags of the
registered model (`vitrail.history.<alias>.<n>-<random>`), and an alias is read again after it was set.
"""

import json
import re
import tempfile
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vitrail.errors import UsageError, VitrailError
from vitrail.tracking.environment import connect, current_user, retry
from vitrail.tracking.gate import Evidence, GateRefusedError, GateRules, Verdict, decide
from vitrail.tracking.registry import WEIGHTS_TAG, Version, get_model, show

CHAMPION = "champion"
VERDICT_TAG = "vitrail.gate.verdict"
"""Tag of a version: "pass" or "fail", of the last time it went through the gate."""
REPORT_TAG = "vitrail.gate.report"
"""Tag of a version: that verdict whole, as JSON."""

_HISTORY_TAG = "vitrail.history"
_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Move:
    """One entry of an alias's history."""

    number: int
    at: str
    by: str
    action: Literal["promote", "force", "rollback"]
    from_version: int | None
    to_version: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What `promote` did."""

    verdict: Verdict
    move: Move


class LostRaceError(VitrailError):
    """Somebody else moved the alias at the same time."""

    def __init__(self, name: str, alias: str, wanted: int, found: int | None) -> None:
        super().__init__(name, alias, wanted, found)
        self.name, self.alias, self.wanted, self.found = name, alias, wanted, found

    def __str__(self) -> str:
        return (
            f"{self.alias} of {self.name} was moved by somebody else meanwhile: it is at version {self.found}, "
            f"not {self.wanted}; look at `vitrail models history {self.name}` and decide again"
        )


def promote(
    name: str,
    version: int,
    alias: str = CHAMPION,
    *,
    tracking_uri: str,
    rules: GateRules | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Promotion:
    """Give `alias` to a version that passes the gate; the verdict is written on the version either way.

    `force` promotes it whatever the verdict, and needs a reason.

    Raises:
        GateRefusedError: the gate's answer is no, and `force` was not given.
        UsageError: unknown names, force without a reason, or the version has the alias already.
        LostRaceError: the alias was moved by somebody else at the same time.
    """
    _check_alias(alias)
    if force and not (reason and reason.strip()):
        raise UsageError('--force needs --reason "why this version should be promoted against the gate"')
    candidate = show(name, tracking_uri=tracking_uri, version=str(version))
    current = get_model(name, tracking_uri=tracking_uri).aliases.get(alias)
    if current == version:
        raise UsageError(f"{name} version {version} is {alias} already")
    champion = None if current is None else evidence(show(name, tracking_uri=tracking_uri, version=str(current)))
    verdict = decide(evidence(candidate), champion, rules or GateRules())
    _record_verdict(candidate, verdict, alias, tracking_uri)
    if not verdict.passed and not force:
        failed = tuple((result.rule, result.detail) for result in verdict.results if not result.passed)
        raise GateRefusedError(name, version, failed)
    action: Literal["promote", "force"] = "promote" if verdict.passed else "force"
    return Promotion(verdict=verdict, move=_move(name, alias, current, version, action, reason, tracking_uri))


def rollback(name: str, alias: str = CHAMPION, *, tracking_uri: str, reason: str | None = None) -> Move:
    """Give `alias` back to the version that had it before, by the recorded history; recorded too.

    Where somebody has moved the alias outside of this history, it returns to the last version on record.

    Raises:
        UsageError: nothing to return to, or that version no longer exists.
    """
    _check_alias(alias)
    model = get_model(name, tracking_uri=tracking_uri)
    current = model.aliases.get(alias)
    line = succession(history(name, alias, tracking_uri=tracking_uri))
    if line and line[-1] == current:
        line = line[:-1]
    if not line:
        raise UsageError(f"{name} has no {alias} before the present one; nothing to roll back to")
    target = line[-1]
    if target not in {version.number for version in model.versions}:
        raise UsageError(f"{name} version {target}, which was {alias} before, has been deleted; promote another one")
    return _move(name, alias, current, target, "rollback", reason, tracking_uri)


def history(name: str, alias: str = CHAMPION, *, tracking_uri: str) -> list[Move]:
    """The recorded moves of an alias, the oldest first."""
    get_model(name, tracking_uri=tracking_uri)
    client = connect(tracking_uri)
    registered = retry(lambda: client.get_registered_model(name), tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    prefix = f"{_HISTORY_TAG}.{alias}."
    moves = [Move(**json.loads(value)) for key, value in registered.tags.items() if key.startswith(prefix)]
    return sorted(moves, key=lambda move: move.number)


def succession(moves: list[Move]) -> list[int]:
    """The versions that had the alias and were not rolled back, the last being the one that should have it now."""
    line: list[int] = []
    for move in moves:
        if move.action == "rollback" and move.to_version in line:
            while line[-1] != move.to_version:
                line.pop()
        else:
            line.append(move.to_version)
    return line


def evidence(version: Version) -> Evidence:
    """What a version's tags say, for the gate."""
    tags = version.tags
    return Evidence(
        version=version.number,
        miou=_number(tags.get("vitrail.mIoU")),
        val_images=_count(tags.get("vitrail.val_images")),
        val_images_total=_count(tags.get("vitrail.val_images_total")),
        data_fingerprint=tags.get("vitrail.data_fingerprint"),
        recipe=tags.get("vitrail.recipe"),
        recipe_digest=tags.get("vitrail.recipe_digest"),
        weights_sha256=tags.get(WEIGHTS_TAG),
        start=tags.get("vitrail.start"),
    )


def _move(
    name: str,
    alias: str,
    current: int | None,
    target: int,
    action: Literal["promote", "force", "rollback"],
    reason: str | None,
    tracking_uri: str,
) -> Move:
    """Set the alias, write it down, and see whether it held."""
    number = max((move.number for move in history(name, alias, tracking_uri=tracking_uri)), default=0) + 1
    move = Move(
        number=number,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=current_user(),
        action=action,
        from_version=current,
        to_version=target,
        reason=reason,
    )
    client = connect(tracking_uri)
    tag = f"{_HISTORY_TAG}.{alias}.{number:04d}-{uuid.uuid4().hex[:8]}"  # two moves at once must not share a tag

    def call() -> None:
        client.set_registered_model_alias(name, alias, str(target))
        client.set_registered_model_tag(name, tag, json.dumps(asdict(move)))

    retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    found = get_model(name, tracking_uri=tracking_uri).aliases.get(alias)
    if found != target:
        client.delete_registered_model_tag(name, tag)
        raise LostRaceError(name, alias, target, found)
    return move


def _record_verdict(candidate: Version, verdict: Verdict, alias: str, tracking_uri: str) -> None:
    """Write the verdict on the version, as tags and as a file that is never replaced."""
    client = connect(tracking_uri)
    report: dict[str, Any] = {"alias": alias, "at": datetime.now(UTC).isoformat(), "by": current_user()}
    report |= verdict.to_dict()

    def call() -> None:
        tags = {VERDICT_TAG: "pass" if verdict.passed else "fail", REPORT_TAG: json.dumps(report)}
        for key, value in tags.items():
            client.set_model_version_tag(candidate.name, str(candidate.number), key, value)
        if candidate.model_id is not None:
            with tempfile.TemporaryDirectory() as aside:
                moment = re.sub(r"[^\dT]", "", report["at"].split("+")[0])
                (Path(aside) / f"{alias}-{moment}.json").write_text(json.dumps(report, indent=2))
                client.log_model_artifacts(candidate.model_id, aside, "gate")

    retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)


def _check_alias(alias: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,60}", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise UsageError(f"{alias!r} cannot be an alias; use small letters, digits, - and _, and not `latest` or `v1`")


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)
