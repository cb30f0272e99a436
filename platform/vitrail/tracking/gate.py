"""The promotion gate's decision: evidence in, verdict out. It knows nothing of MLflow, so it can be tested alone."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitrail.errors import VitrailError


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a version; None where it is not recorded."""

    version: int
    miou: float | None
    val_images: int | None
    val_images_total: int | None
    """Size of the whole validation split."""
    data_fingerprint: str | None
    recipe: str | None
    recipe_digest: str | None
    weights_sha256: str | None
    start: str | None
    """Which weights training started from."""


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What a candidate must show."""

    min_gain: float = 0.0
    """mIoU, as a fraction, by which the candidate must exceed the champion's; more than 0 even at 0.0."""
    allow_equal: bool = False
    """Let a candidate pass that is exactly `min_gain` above the champion, so that 0.0 lets equals pass."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < 1:
            raise ValueError(f"min_gain={self.min_gain} must be a fraction of at least 0 and below 1")


@dataclass(frozen=True)
class RuleResult:
    """The outcome of one rule, with its numbers in words."""

    rule: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a candidate, and all that it rests on."""

    candidate: Evidence
    champion: Evidence | None
    rules: GateRules
    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON can hold it."""
        return {"passed": self.passed, **asdict(self)}


class GateRefusedError(VitrailError):
    """A candidate that did not pass the gate; `failed` has (rule, detail) of each rule at fault."""

    def __init__(self, name: str, version: int, failed: tuple[tuple[str, str], ...]) -> None:
        super().__init__(name, version, failed)
        self.name, self.version, self.failed = name, version, failed

    def __str__(self) -> str:
        lines = [f"{self.name} version {self.version} did not pass the gate:"]
        lines += [f"  {rule}: {detail}" for rule, detail in self.failed]
        return "\n".join([*lines, 'to promote it all the same: --force --reason "why"'])


def decide(candidate: Evidence, champion: Evidence | None, rules: GateRules) -> Verdict:
    """The verdict on `candidate`; without a champion, only the rules that need none apply."""
    results = [_lineage(candidate), _full_validation(candidate), _score(candidate)]
    if champion is not None:
        results += [
            _same_data(candidate, champion),
            _same_images(candidate, champion),
            _gain(candidate, champion, rules),
        ]
    return Verdict(candidate=candidate, champion=champion, rules=rules, results=tuple(results))


def _lineage(candidate: Evidence) -> RuleResult:
    required = ("data_fingerprint", "recipe", "recipe_digest", "weights_sha256", "start")
    missing = [name for name in required if not getattr(candidate, name)]
    detail = f"not recorded: {', '.join(missing)}" if missing else "data, recipe, weights and their start are recorded"
    return RuleResult("lineage", not missing, detail)


def _full_validation(candidate: Evidence) -> RuleResult:
    seen, total = candidate.val_images, candidate.val_images_total
    passed = seen is not None and seen == total and seen > 0
    return RuleResult("full validation", passed, f"validated on {_or_unknown(seen)} of {_or_unknown(total)} images")


def _score(candidate: Evidence) -> RuleResult:
    miou = candidate.miou
    passed = miou is not None and math.isfinite(miou) and 0 <= miou <= 1
    return RuleResult("score", passed, f"mIoU is {_percent(miou)}")


def _same_data(candidate: Evidence, champion: Evidence) -> RuleResult:
    ours, theirs = candidate.data_fingerprint, champion.data_fingerprint
    passed = ours is not None and ours == theirs
    detail = f"fingerprint {_or_unknown(ours)}; champion's {_or_unknown(theirs)}"
    return RuleResult("same data", passed, detail)


def _same_images(candidate: Evidence, champion: Evidence) -> RuleResult:
    passed = candidate.val_images is not None and candidate.val_images == champion.val_images
    detail = f"{_or_unknown(candidate.val_images)} images; champion's {_or_unknown(champion.val_images)}"
    return RuleResult("same validation images", passed, detail)


def _gain(candidate: Evidence, champion: Evidence, rules: GateRules) -> RuleResult:
    ours, theirs = candidate.miou, champion.miou
    needed = f"{'at least' if rules.allow_equal else 'more than'} {rules.min_gain:.2%} above"
    if ours is None or theirs is None:
        return RuleResult("gain", False, f"mIoU {_percent(ours)} cannot be compared with {_percent(theirs)}")
    gain = ours - theirs
    # A comparison with NaN is false, so a score that is not a number never passes.
    passed = gain >= rules.min_gain if rules.allow_equal else gain > rules.min_gain
    detail = f"mIoU {_percent(ours)} must be {needed} the champion's {_percent(theirs)}; it is {100 * gain:+.2f} points"
    return RuleResult("gain", passed, detail)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)
