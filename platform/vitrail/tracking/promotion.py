"""Moving an alias: through the gate, on record, and back.

MLflow's aliases have no history. So every move is written down as a tag of the registered model
(`vitrail.history.<alias>.<n>-<random>`), under a lock, and the alias is read again after it was set.
"""

import json
import re
import tempfile
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from vitrail.errors import UsageError, VitrailError
from vitrail.gate.page import render_verdict
from vitrail.gate.verdict import GateRefusedError, Verdict
from vitrail.tracking.alias_lock import Held, alias_lock
from vitrail.tracking.environment import connect, current_user, retry
from vitrail.tracking.production import copy_version
from vitrail.tracking.registry import Version, aliased, get_model, show

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


class LostRaceError(VitrailError):
    """Somebody else moved the alias meanwhile."""

    def __init__(self, name: str, alias: str, expected: int | None, found: int | None) -> None:
        super().__init__(name, alias, expected, found)
        self.name, self.alias, self.expected, self.found = name, alias, expected, found

    def __str__(self) -> str:
        places = ["nowhere" if number is None else f"at version {number}" for number in (self.expected, self.found)]
        return (
            f"{self.alias} of {self.name} was moved by somebody else meanwhile: it is {places[1]}, not {places[0]}; "
            f"look at `vitrail models history {self.name}` and decide again"
        )


def promote(
    verdict: Verdict,
    alias: str = CHAMPION,
    *,
    tracking_uri: str,
    into: str | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Move:
    """Give `alias` to the candidate of a verdict that passed; the verdict is written on the version either way.

    With `into`, the version is copied to that registered model first, and the alias is that model's: where people have
    rights, those who register candidates need none on what is in production. `force` promotes it whatever the verdict,
    and needs a reason.

    Raises:
        GateRefusedError: the gate's answer is no, and `force` was not given.
        UsageError: unknown names, force without a reason, or the version has the alias already.
        LostRaceError: the alias is no longer at the version that the candidate was compared with.
        AliasBusyError: somebody else is moving it and does not come to an end.
    """
    check_alias(alias)
    check_reason(force=force, reason=reason)
    candidate = show(verdict.candidate.name, tracking_uri=tracking_uri, version=str(verdict.candidate.version))
    action: Literal["promote", "force"] = "promote" if verdict.passed else "force"
    expected = None if verdict.champion is None else verdict.champion.version
    target = into or candidate.name
    report = _Report.of(verdict, alias)
    with alias_lock(target, alias, tracking_uri=tracking_uri) as lock:
        report.write(candidate, tracking_uri)
        if not verdict.passed and not force:
            failed = tuple((result.rule, result.detail) for result in verdict.results if not result.passed)
            raise GateRefusedError(candidate.name, candidate.number, failed)
        current = aliased(target, alias, tracking_uri=tracking_uri)
        number = candidate.number
        if target != candidate.name:
            copy = copy_version(candidate, target, tracking_uri=tracking_uri)
            report.tag(copy, tracking_uri)
            number = copy.number
        if current == number:
            raise UsageError(f"{target} version {number} is {alias} already")
        if current != expected:
            raise LostRaceError(target, alias, expected, current)
        return _move(lock, target, alias, current, number, action, reason, tracking_uri)


def rollback(name: str, alias: str = CHAMPION, *, tracking_uri: str, reason: str | None = None) -> Move:
    """Give `alias` back to the version that had it before, by the recorded history; recorded too.

    Where somebody has moved the alias outside of this history, it returns to the last version on record.

    Raises:
        UsageError: nothing to return to, or that version no longer exists.
    """
    check_alias(alias)
    with alias_lock(name, alias, tracking_uri=tracking_uri) as lock:
        model = get_model(name, tracking_uri=tracking_uri)
        current = model.aliases.get(alias)
        line = succession(history(name, alias, tracking_uri=tracking_uri))
        if line and line[-1] == current:
            line = line[:-1]
        if not line:
            raise UsageError(f"{name} has no {alias} before the present one; nothing to roll back to")
        target = line[-1]
        if target not in {version.number for version in model.versions}:
            raise UsageError(f"{name} version {target}, which was {alias} before, has been deleted; promote another")
        return _move(lock, name, alias, current, target, "rollback", reason, tracking_uri)


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


def _move(
    lock: Held,
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
    tag = f"{_HISTORY_TAG}.{alias}.{number:04d}-{uuid.uuid4().hex[:8]}"  # so that no move ever replaces another

    def call() -> None:
        client.set_registered_model_alias(name, alias, str(target))
        client.set_registered_model_tag(name, tag, json.dumps(asdict(move)))

    retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    found = aliased(name, alias, tracking_uri=tracking_uri)
    if found != target or not lock.is_held():
        client.delete_registered_model_tag(name, tag)
        raise LostRaceError(name, alias, target, found)
    return move


@dataclass(frozen=True)
class _Report:
    """A verdict as it is kept: drawn before anything is locked."""

    stem: str
    tags: dict[str, str]
    files: dict[str, str]

    @classmethod
    def of(cls, verdict: Verdict, alias: str) -> Self:
        """With time and user of now."""
        now = datetime.now(UTC)
        whole = {"alias": alias, "at": now.isoformat(timespec="seconds"), "by": current_user(), **verdict.to_dict()}
        short = {key: value for key, value in whole.items() if key != "classes"}  # 150 of them would fill the page
        return cls(
            stem=f"{alias}-{now:%Y%m%dT%H%M%S}",
            tags={VERDICT_TAG: "pass" if verdict.passed else "fail", REPORT_TAG: json.dumps(short)},
            files={"json": json.dumps(whole, indent=2), "html": render_verdict(verdict)},
        )

    def tag(self, version: Version, tracking_uri: str) -> None:
        """On a version, as tags that replace those of an earlier verdict."""
        client = connect(tracking_uri)

        def call() -> None:
            for key, value in self.tags.items():
                client.set_model_version_tag(version.name, str(version.number), key, value)

        retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)

    def write(self, candidate: Version, tracking_uri: str) -> None:
        """On the version that was judged: as tags, and as files that are never replaced."""
        self.tag(candidate, tracking_uri)
        model_id = candidate.model_id
        if model_id is None:
            return
        client = connect(tracking_uri)

        def call() -> None:
            with tempfile.TemporaryDirectory() as aside:
                for suffix, text in self.files.items():
                    (Path(aside) / f"{self.stem}.{suffix}").write_text(text)
                client.log_model_artifacts(model_id, aside, "gate")

        retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)


def check_alias(alias: str) -> None:
    """Raise a `UsageError` unless MLflow and this history can both hold an alias of that name."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,60}", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise UsageError(f"{alias!r} cannot be an alias; use small letters, digits, - and _, and not `latest` or `v1`")


def check_reason(*, force: bool, reason: str | None) -> None:
    """Raise a `UsageError` where promotion is forced and nobody says why."""
    if force and not (reason and reason.strip()):
        raise UsageError('--force needs --reason "why this version should be promoted against the gate"')
