"""The outcome of the gate, rule by rule, with all that it rests on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitrail.errors import VitrailError
from vitrail.gate.bootstrap import Differences, Interval
from vitrail.gate.evidence import Evidence, JudgedOn
from vitrail.gate.limits import GateRules


@dataclass(frozen=True)
class RuleResult:
    """The outcome of one rule, with its numbers in words."""

    rule: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """One class under both models: IoU as fractions, None for a class that never occurs."""

    name: str
    share: float
    """Of the labelled pixels."""
    candidate: float | None
    champion: float | None
    difference: Interval


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a candidate, and all that it rests on."""

    candidate: Evidence
    champion: Evidence | None
    judged_on: JudgedOn
    rules: GateRules
    results: tuple[RuleResult, ...]
    differences: Differences | None
    """Candidate less champion; None without a champion, or where one of them has no counts."""

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(result.passed for result in self.results)

    def classes(self) -> list[ClassDifference]:
        """The classes in the order of the data set; none where nothing was compared."""
        if self.differences is None or self.champion is None:
            return []
        scores, before = self.candidate.scores, self.champion.scores
        shares = self.candidate.class_shares()
        intervals = self.differences.iou_intervals()
        return [
            ClassDifference(
                name=name,
                share=float(shares[index]),
                candidate=_number(scores.iou[index]),
                champion=_number(before.iou[index]),
                difference=intervals[index],
            )
            for index, name in enumerate(self.judged_on.classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON can hold it, without the counts themselves."""
        gain = None if self.differences is None else asdict(self.differences.miou_interval())
        whole: dict[str, Any] = _without_nan(
            {
                "passed": self.passed,
                "results": [asdict(result) for result in self.results],
                "candidate": self.candidate.summary(),
                "champion": None if self.champion is None else self.champion.summary(),
                "judged_on": asdict(self.judged_on),
                "gain": gain,
                "classes": [asdict(row) for row in self.classes()],
                "rules": asdict(self.rules),
            }
        )
        return whole


class GateRefusedError(VitrailError):
    """A candidate that did not pass the gate; `failed` has (rule, detail) of each rule at fault."""

    def __init__(self, name: str, version: int, failed: tuple[tuple[str, str], ...]) -> None:
        super().__init__(name, version, failed)
        self.name, self.version, self.failed = name, version, failed

    def __str__(self) -> str:
        lines = [f"{self.name} version {self.version} did not pass the gate:"]
        lines += [f"  {rule}: {detail}" for rule, detail in self.failed]
        return "\n".join([*lines, 'to promote it all the same: --force --reason "why"'])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
