"""Means, intervals and noise, against SAS, printed tables and arithmetic by hand."""

from math import sqrt

import numpy as np
import pytest
from sample_sweep import record, sweep_of_necks, trial

from vitrail.sweep.statistics import Interval, SweepStatistics, ranked_labels, summarise

# PROC ANOVA's MEANS / TUKEY CLDIFF of relief by brand, as shares of 1: (a, b, low, difference, high)
EQUAL = {"1": [24.5, 23.5, 26.4, 27.1, 29.9], "2": [28.4, 34.2, 29.5, 32.2, 30.1], "3": [26.1, 28.3, 24.3, 26.2, 27.8]}
UNEQUAL = EQUAL | {"1": [24.5, 23.5, 26.28, 26.4, 27.1, 29.9, 30.1, 30.1]}
SAS_EQUAL = [
    ("2", "3", 0.6908830568, 4.34, 7.989116943),
    ("2", "1", 0.9508830568, 4.6, 8.249116943),
    ("1", "3", -3.909116943, -0.26, 3.389116943),
]
SAS_UNEQUAL = [
    ("2", "1", 0.2679292645, 3.645, 7.022070736),
    ("3", "2", -8.086523599, -4.34, -0.5934764007),
    ("1", "3", -2.682070736, 0.695, 4.072070736),
]


def of_percent(scores: dict[str, list[float]]) -> SweepStatistics:
    return summarise(sweep_of_necks({name: [score / 100 for score in all] for name, all in scores.items()}))


def margin(interval: Interval | None) -> float:
    assert interval is not None
    return (interval.high - interval.low) / 2


def test_mean_spread_and_interval_match_arithmetic_by_hand() -> None:
    (scores,) = of_percent({"mln": [40.0, 41.0, 45.0]}).configurations
    assert scores.n == 3 and scores.mean == pytest.approx(0.42)
    assert scores.std == pytest.approx(sqrt((2**2 + 1**2 + 3**2) / 2) / 100)
    assert margin(scores.interval) == pytest.approx(4.3027 * sqrt(7) / sqrt(3) / 100, rel=1e-4)  # t table, 2 degrees


@pytest.mark.parametrize(("scores", "expected"), [(EQUAL, SAS_EQUAL), (UNEQUAL, SAS_UNEQUAL)])
def test_differences_match_sas(
    scores: dict[str, list[float]], expected: list[tuple[str, str, float, float, float]]
) -> None:
    statistics = of_percent(scores)
    for a, b, low, mean, high in expected:
        difference = statistics.difference(a, b)
        assert difference is not None and difference.interval is not None
        got = (difference.interval.low, difference.mean, difference.interval.high)
        assert got == pytest.approx((low / 100, mean / 100, high / 100), abs=1e-6)
        assert statistics.within_noise(a, b) == statistics.within_noise(b, a) == (low <= 0 <= high)


def test_margin_of_two_seeds_matches_the_printed_table() -> None:
    """Three configurations of two seeds each two points apart: variance 2, and q(0.05; 3, 3) is 5.91 in the tables."""
    statistics = of_percent({"none": [30.0, 32.0], "mln": [33.0, 35.0], "ln_mln": [40.0, 42.0]})
    difference = statistics.difference("mln", "none")
    assert difference is not None and difference.mean == pytest.approx(0.03)
    assert margin(difference.interval) == pytest.approx(5.91 * sqrt(2) / sqrt(2) / 100, rel=1e-3)
    assert statistics.within_noise("mln", "none") is True
    assert statistics.within_noise("ln_mln", "none") is False


def test_configuration_of_one_seed_is_compared_by_the_spread_of_the_others() -> None:
    """The third seed is alone: it adds a mean to the table's row, q(0.05; 3, 4) = 5.04, and no degree of freedom."""
    statistics = of_percent({"none": [30.0, 31.0, 32.0], "mln": [34.0, 35.0, 36.0], "ln_mln": [45.0]})
    assert statistics.noise is not None and statistics.noise.degrees_of_freedom == 4
    assert statistics.noise.std == pytest.approx(0.01)
    alone = statistics.difference("ln_mln", "mln")
    assert alone is not None
    assert margin(alone.interval) == pytest.approx(5.04 * 0.01 * sqrt((1 + 1 / 3) / 2), rel=1e-3)


def test_difference_intervals_hold_together_in_95_of_100_sweeps() -> None:
    """Six equal configurations: in 5 of 100 sweeps any pair is called different, not in the 40 of single t tests."""
    rng = np.random.default_rng(0)
    draws = rng.normal(40, 1, (400, 6, 3))
    names = "abcdef"
    sweeps = [of_percent({name: row.tolist() for name, row in zip(names, draw, strict=True)}) for draw in draws]
    wrong = sum(s.within_noise(s.configurations[0].label, s.configurations[-1].label) is False for s in sweeps)
    assert 8 <= wrong <= 32


@pytest.mark.parametrize(
    "scores",
    [
        {"none": [30.0], "mln": [40.0], "ln_mln": [50.0]},
        {"none": [30.0, 30.5], "mln": [40.0], "ln_mln": [50.0]},
    ],
)
def test_noise_is_unknown_with_fewer_than_two_repeated_seeds(scores: dict[str, list[float]]) -> None:
    statistics = of_percent(scores)
    assert statistics.noise is None and "--seeds 3" in str(statistics.noise_unknown)
    assert statistics.within_noise("ln_mln", "none") is None
    difference = statistics.difference("ln_mln", "none")
    assert difference is not None and difference.interval is None and difference.mean > 0.19


def test_noise_is_unknown_where_seeds_change_nothing() -> None:
    statistics = of_percent({"none": [10.1] * 3, "mln": [20.2] * 3})
    assert statistics.noise is None and "agree to the last digit" in str(statistics.noise_unknown)
    assert statistics.within_noise("none", "mln") is None


def test_only_finished_trials_are_averaged() -> None:
    trials = [
        trial({"neck": "none"}, 0.3, seed=0),
        trial({"neck": "none"}, 0.9, seed=1, status="stopped"),
        trial({"neck": "none"}, 0.9, seed=2, status="failed"),
        trial({"neck": "none"}, 0.9, seed=3, status="running"),
        trial({"neck": "none"}, None, seed=4, status="finished"),
        trial({"neck": "mln"}, 0.9, seed=0, status="stopped"),
    ]
    sweep = record(trials)
    statistics = summarise(sweep)
    assert [(scores.label, scores.scores) for scores in statistics.configurations] == [("none", (0.3,))]
    assert statistics.difference("none", "mln") is None and statistics.within_noise("mln", "none") is None
    assert ranked_labels(sweep, statistics) == ["none", "mln"]


def test_trial_counts_with_its_best_validation_and_not_its_last() -> None:
    run = trial({"neck": "none"}, 0.4)
    worse = run.scores[-1].model_copy(update={"step": 2_500, "miou": 0.2})
    (scores,) = summarise(record([run.model_copy(update={"scores": (*run.scores, worse)})])).configurations
    assert scores.scores == (0.4,)


def test_configurations_are_ranked_by_mean() -> None:
    statistics = of_percent({"none": [30.0, 50.0], "mln": [41.0, 42.0], "ln_mln": [20.0, 70.0]})
    assert [scores.label for scores in statistics.configurations] == ["ln_mln", "mln", "none"]
