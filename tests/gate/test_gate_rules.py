"""The gate lets the better model through and stops the others, each rule for a reason of its own."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from made_up_evidence import CLASSES, COST, evidence, judged, judged_on, scenes

from vitrail.evaluation.image_counts import ImageCounts
from vitrail.gate.evidence import Evidence
from vitrail.gate.limits import GateRules
from vitrail.gate.page import render_verdict
from vitrail.gate.rules import decide
from vitrail.gate.verdict import GateRefusedError

SCENES = scenes()
GOOD, BETTER = judged(SCENES, skill=1.0, seed=1), judged(SCENES, skill=1.6, seed=2)
CHAMPION = evidence(GOOD, version=1)


def failed(candidate: Evidence, champion: Evidence | None = CHAMPION, **rules: object) -> list[str]:
    verdict = decide(candidate, champion, judged_on(), GateRules(**rules))
    assert verdict.passed == all(result.passed for result in verdict.results)
    return [result.rule for result in verdict.results if not result.passed]


def first_images(counts: ImageCounts, images: int) -> ImageCounts:
    arrays = {name: getattr(counts, name)[:images] for name in ("intersection", "predicted", "labelled")}
    return ImageCounts(ids=counts.ids[:images], **arrays)


def with_collapsed_class(counts: ImageCounts, index: int) -> ImageCounts:
    """Nothing of one class is found any more."""
    lost = counts.intersection[:, index]
    intersection, predicted = counts.intersection.copy(), counts.predicted.copy()
    intersection[:, index] = 0
    predicted[:, index] -= lost
    return replace(counts, intersection=intersection, predicted=predicted)


def test_better_candidate_passes() -> None:
    assert failed(evidence(BETTER)) == []


def test_first_champion_needs_no_comparison() -> None:
    assert failed(evidence(judged(SCENES, skill=-3.0)), champion=None) == []


@pytest.mark.parametrize(
    ("candidate", "rules"),
    [
        (evidence(judged(SCENES, skill=0.8, seed=3)), {"gain"}),
        (evidence(GOOD), {"gain"}),
        (evidence(None), {"candidate evaluated", "gain", "classes"}),
        (evidence(first_images(BETTER, 39)), {"candidate evaluated", "gain", "classes"}),
        (evidence(BETTER, code=None), {"lineage"}),
        (evidence(BETTER, start=""), {"lineage"}),
        (evidence(BETTER, data_fingerprint="e" * 32), {"held out"}),
        (evidence(BETTER, data_fingerprint=None), {"lineage", "held out"}),
        (evidence(BETTER, cost=None), {"speed", "memory"}),
        (evidence(BETTER, cost=replace(COST, images_per_s=4.9)), {"speed"}),
        (evidence(BETTER, cost=replace(COST, peak_memory_gib=2.1)), {"memory"}),
    ],
)
def test_each_rule_stops_a_candidate(candidate: Evidence, rules: set[str]) -> None:
    assert set(failed(candidate)) == rules


def test_class_that_collapses_stops_a_candidate_that_is_better_in_all() -> None:
    random = np.random.default_rng(5)
    rare = SCENES.copy()
    rare[:, 3] = random.integers(800, 1200, len(rare))
    champion = evidence(judged(rare, skill=0.5, seed=1), version=1)
    candidate = evidence(with_collapsed_class(judged(rare, skill=6.0, seed=2), 3))
    assert candidate.scores.miou > champion.scores.miou
    assert failed(candidate, champion) == ["classes"]
    assert failed(candidate, champion, min_class_share=0.2) == []
    verdict = decide(candidate, champion, judged_on(), GateRules())
    (classes,) = [result for result in verdict.results if result.rule == "classes"]
    assert "pole loses most" in classes.detail and "to 0.00%" in classes.detail


def test_champion_without_a_complete_evaluation_stops_a_comparison() -> None:
    champion = evidence(first_images(GOOD, 30), version=1)
    assert set(failed(evidence(BETTER), champion)) == {"champion evaluated", "gain", "classes"}


def test_equal_passes_only_when_allowed_and_only_when_it_is_sure() -> None:
    near = evidence(judged(SCENES, skill=1.0, seed=4, noise=0.5))
    assert failed(near) == ["gain"]
    assert failed(evidence(GOOD), allow_equal=True) == []
    assert failed(near, allow_equal=True, margin=0.0001) == ["gain"]
    assert failed(near, allow_equal=True, margin=0.5) == []


def test_margin_is_to_be_exceeded_with_confidence() -> None:
    verdict = decide(evidence(BETTER), CHAMPION, judged_on(), GateRules())
    assert verdict.differences is not None
    gain = verdict.differences.miou_interval()
    assert failed(evidence(BETTER), margin=(gain.low + gain.estimate) / 2) == ["gain"]
    assert failed(evidence(BETTER), margin=gain.low - 1e-6) == []


def test_few_images_prove_nothing() -> None:
    few = first_images(BETTER, 9), first_images(judged(SCENES, skill=-2.0), 9)
    verdict = decide(evidence(few[0]), evidence(few[1], version=1), judged_on(9), GateRules())
    assert [result.rule for result in verdict.results if not result.passed] == ["gain"]


def test_budgets_apply_to_the_first_champion_too() -> None:
    assert failed(evidence(BETTER), champion=None, min_images_per_s=11, max_memory_gib=0.5) == ["speed", "memory"]


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"max_class_drop": 1.0}, {"max_slowdown": 0.5}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateRules(**wrong)


def test_verdict_is_json_and_a_page_with_every_rule_and_its_numbers() -> None:
    verdict = decide(evidence(GOOD), CHAMPION, judged_on(), GateRules())
    report = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert report["passed"] is False
    assert report["candidate"]["mIoU"] == pytest.approx(GOOD.scores().miou)
    assert [row["name"] for row in report["classes"]] == list(CLASSES)
    assert report["gain"] == {"estimate": 0, "low": 0, "high": 0}
    page = render_verdict(verdict)
    assert all(result.rule in page for result in verdict.results)
    assert page.count("<img") == 2 and "Not passed:" in page
    assert "<script" not in render_verdict(decide(replace(CHAMPION, name="<script>"), None, judged_on(), GateRules()))


def test_refusal_survives_pickling_and_says_what_to_do() -> None:
    error = pickle.loads(pickle.dumps(GateRefusedError("streets", 2, (("gain", "mIoU is lower"),))))
    assert "gain: mIoU is lower" in str(error)
    assert "--force" in str(error)
    assert error.exit_code == 1
