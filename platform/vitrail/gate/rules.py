"""The gate's decision: evidence on a candidate and on today's champion in, a verdict out.

verdict = decide(candidate, champion, GateRules())
"""

import math
from dataclasses import asdict

from vitrail.gate.bootstrap import Differences, Interval, paired_differences
from vitrail.gate.evidence import Evidence, JudgedOn
from vitrail.gate.limits import GateRules
from vitrail.gate.verdict import RuleResult, Verdict

_MIN_IMAGES = 10
"""Fewer images cannot carry an interval."""


def decide(candidate: Evidence, champion: Evidence | None, judged_on: JudgedOn, rules: GateRules) -> Verdict:
    """The verdict on `candidate`; without a champion, only the rules that need none apply."""
    results = [_lineage(candidate), _held_out(candidate, judged_on), *_evaluated(candidate, judged_on, "candidate")]
    differences = None
    if champion is not None:
        results += _evaluated(champion, judged_on, "champion")
        if candidate.counts is not None and champion.counts is not None and candidate.counts.ids == champion.counts.ids:
            differences = paired_differences(candidate.counts, champion.counts)
        results += [_gain(differences, len(candidate.counts or ()), rules)]
        results += [_classes(candidate, champion, differences, judged_on, rules)]
    results += [_speed(candidate, champion, rules), _memory(candidate, champion, rules)]
    return Verdict(
        candidate=candidate,
        champion=champion,
        judged_on=judged_on,
        rules=rules,
        results=tuple(results),
        differences=differences,
    )


def _lineage(candidate: Evidence) -> RuleResult:
    missing = [name.replace("_", " ") for name, value in asdict(candidate.lineage).items() if not value]
    if missing:
        return RuleResult("lineage", False, f"not recorded: {', '.join(missing)}")
    return RuleResult("lineage", True, "recipe, data, code, start and weights are recorded")


def _held_out(candidate: Evidence, judged_on: JudgedOn) -> RuleResult:
    """That none of the images was trained on is known of the data set's own validation split alone."""
    trained, judged = candidate.lineage.data_fingerprint, judged_on.fingerprint
    if trained == judged:
        return RuleResult("held out", True, f"trained on the data set of these validation images, {judged[:12]}")
    detail = f"trained on data {(trained or 'unknown')[:12]}, judged on {judged[:12]}: its images may be among those"
    return RuleResult("held out", False, detail)


def _evaluated(evidence: Evidence, judged_on: JudgedOn, who: str) -> list[RuleResult]:
    seen = None if evidence.counts is None else len(evidence.counts)
    complete = seen == judged_on.images and judged_on.images > 0
    detail = f"on {seen or 'none'} of {judged_on.images} images"
    results = [RuleResult(f"{who} evaluated", complete, detail)]
    if evidence.counts is not None:
        miou = evidence.scores.miou
        results.append(RuleResult(f"{who} scored", math.isfinite(miou), f"mIoU is {miou:.2%}"))
    return results


def _gain(differences: Differences | None, images: int, rules: GateRules) -> RuleResult:
    if differences is None:
        return RuleResult("gain", False, "the two were not evaluated on the same images")
    gain = differences.miou_interval()
    needed = f"must be above {_points(rules.least_gain)} with 95 % confidence"
    detail = f"mIoU differs by {_interval(gain)} points, and {needed}"
    if images < _MIN_IMAGES:
        return RuleResult("gain", False, f"{detail}; {images} images are too few to say, it takes {_MIN_IMAGES}")
    # A comparison with NaN is false, so a score that is not a number never passes.
    return RuleResult("gain", gain.low > rules.least_gain, detail)


def _classes(
    candidate: Evidence, champion: Evidence, differences: Differences | None, judged_on: JudgedOn, rules: GateRules
) -> RuleResult:
    if differences is None:
        return RuleResult("classes", False, "the two were not evaluated on the same images")
    shares = candidate.class_shares()
    enough = [index for index, share in enumerate(shares) if share >= rules.min_class_share]
    # A class that the candidate has no score for although it is labelled cannot be: its union holds the labels.
    worst = min(enough, key=lambda index: differences.iou[index], default=None)
    judged = f"{len(enough)} of {len(shares)} classes have {rules.min_class_share:.2%} of the pixels or more"
    if worst is None:
        return RuleResult("classes", False, f"{judged}: nothing to judge by")
    drop, name = -float(differences.iou[worst]), judged_on.classes[worst]
    before, now = champion.scores.iou[worst], candidate.scores.iou[worst]
    detail = f"{judged}; {name} loses most: from {before:.2%} to {now:.2%}, {_points(rules.max_class_drop)} allowed"
    if drop <= 0:
        detail = f"{judged}; none loses anything"
    return RuleResult("classes", drop <= rules.max_class_drop, detail)


def _speed(candidate: Evidence, champion: Evidence | None, rules: GateRules) -> RuleResult:
    if candidate.cost is None:
        return RuleResult("speed", False, "not measured")
    rate, parts, passed = candidate.cost.images_per_s, [], True
    if rules.min_images_per_s is not None:
        passed = rate >= rules.min_images_per_s
        parts.append(f"at least {rules.min_images_per_s:g} wanted")
    if champion is not None and champion.cost is not None:
        passed = passed and rate * rules.max_slowdown >= champion.cost.images_per_s
        parts.append(f"the champion {champion.cost.images_per_s:.3g}, {rules.max_slowdown:g} x as slow allowed")
    elif champion is not None:
        return RuleResult("speed", False, "the champion's was not measured")
    return RuleResult("speed", passed, "; ".join([f"{rate:.3g} images/s on {candidate.cost.device}", *parts]))


def _memory(candidate: Evidence, champion: Evidence | None, rules: GateRules) -> RuleResult:
    if candidate.cost is None:
        return RuleResult("memory", False, "not measured")
    memory, parts, passed = candidate.cost.peak_memory_gib, [], True
    if rules.max_memory_gib is not None:
        passed = memory <= rules.max_memory_gib
        parts.append(f"at most {rules.max_memory_gib:g} wanted")
    if champion is not None and champion.cost is not None:
        passed = passed and memory <= rules.max_memory_growth * champion.cost.peak_memory_gib
        parts.append(f"the champion {champion.cost.peak_memory_gib:.2f}, {rules.max_memory_growth:g} x allowed")
    elif champion is not None:
        return RuleResult("memory", False, "the champion's was not measured")
    return RuleResult("memory", passed, "; ".join([f"{memory:.2f} GiB at the peak of predicting", *parts]))


def _points(fraction: float) -> str:
    return f"{100 * fraction:g} points"


def _interval(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
