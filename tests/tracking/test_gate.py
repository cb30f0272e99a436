import json
import math
import pickle

import pytest

from vitrail.tracking.gate import Evidence, GateRefusedError, GateRules, decide


def evidence(**changes) -> Evidence:
    values = {
        "version": 2,
        "miou": 0.45,
        "val_images": 2000,
        "val_images_total": 2000,
        "data_fingerprint": "f" * 16,
        "recipe": "upernet_deit-s16",
        "recipe_digest": "d" * 16,
        "weights_sha256": "a" * 64,
        "start": "random weights",
    }
    return Evidence(**{**values, **changes})


CHAMPION = evidence(version=1, miou=0.44)


def failed(candidate: Evidence, champion: Evidence | None = CHAMPION, **rules) -> list[str]:
    verdict = decide(candidate, champion, GateRules(**rules))
    assert verdict.passed == all(result.passed for result in verdict.results)
    return [result.rule for result in verdict.results if not result.passed]


def test_better_candidate_passes():
    assert failed(evidence()) == []


def test_first_champion_needs_no_comparison():
    assert failed(evidence(miou=0.01), champion=None) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"miou": 0.43}, "gain"),
        ({"miou": 0.44}, "gain"),
        ({"miou": math.nan}, "score"),
        ({"miou": None}, "score"),
        ({"miou": 45.0}, "score"),
        ({"data_fingerprint": "e" * 16}, "same data"),
        ({"data_fingerprint": None}, "lineage"),
        ({"recipe_digest": ""}, "lineage"),
        ({"start": None}, "lineage"),
        ({"val_images": 1999}, "full validation"),
        ({"val_images": None}, "full validation"),
        ({"val_images": 0, "val_images_total": 0}, "full validation"),
        ({"val_images": 500, "val_images_total": 500}, "same validation images"),
    ],
)
def test_each_rule_stops_a_candidate(changes, rule):
    assert rule in failed(evidence(**changes))


def test_nan_fails_also_where_equals_may_pass():
    assert set(failed(evidence(miou=math.nan), allow_equal=True)) == {"score", "gain"}
    assert failed(evidence(), champion=evidence(version=1, miou=math.nan)) == ["gain"]


def test_equal_passes_only_when_allowed():
    equal = evidence(miou=CHAMPION.miou)
    assert failed(equal) == ["gain"]
    assert failed(equal, allow_equal=True) == []
    assert failed(evidence(miou=0.4399), allow_equal=True) == ["gain"]


def test_minimum_gain_is_a_strict_bound():
    assert failed(evidence(miou=0.75), champion=evidence(version=1, miou=0.5), min_gain=0.25) == ["gain"]
    assert failed(evidence(miou=0.76), champion=evidence(version=1, miou=0.5), min_gain=0.25) == []
    with pytest.raises(ValueError, match="min_gain"):
        GateRules(min_gain=-0.1)


def test_verdict_is_json_with_every_rule_and_its_numbers():
    verdict = decide(evidence(miou=0.43), CHAMPION, GateRules())
    report = json.loads(json.dumps(verdict.to_dict()))
    assert report["passed"] is False
    assert len(report["results"]) == 6
    (gain,) = [result for result in report["results"] if result["rule"] == "gain"]
    assert "43.00%" in gain["detail"] and "44.00%" in gain["detail"] and "-1.00 points" in gain["detail"]


def test_refusal_survives_pickling_and_says_what_to_do():
    error = pickle.loads(pickle.dumps(GateRefusedError("streets", 2, (("gain", "mIoU is lower"),))))
    assert "gain: mIoU is lower" in str(error)
    assert "--force" in str(error)
    assert error.exit_code == 1
