"""Which configuration is named, by which rule, and in which words; and the Pareto front."""

import itertools

import numpy as np
import pytest
from sample_sweep import cost, record, sweep_of_necks, trial

from vitrail.errors import VitrailError
from vitrail.sweep.decision import decide
from vitrail.sweep.pareto import pareto_front

# The spread of seeds is 0.01, so that means of three are told apart from about 0.025 on.
CLOSE = {"none": (0.30, 0.31, 0.32), "mln": (0.405, 0.415, 0.425), "ln_mln": (0.41, 0.42, 0.43)}


def test_score_takes_the_highest_mean_and_names_what_is_within_noise() -> None:
    decision = decide(sweep_of_necks(CLOSE))
    assert decision.winner == "ln_mln" and decision.noise_known
    assert decision.within_noise == ("mln",)
    assert decision.reason == (
        "ln_mln has the highest mean mIoU: 42.00% over 3 seeds (95% interval 39.52% to 44.48%). "
        "1 of the 2 others is within noise of it."
    )


def test_best_seed_of_the_winner_is_the_trial_to_use() -> None:
    trials = [
        trial({"neck": "mln"}, 0.41, seed=0),
        trial({"neck": "mln"}, 0.43, seed=1),
        trial({"neck": "mln"}, 0.60, seed=2, status="stopped"),
        trial({"neck": "none"}, 0.44, seed=0),
        trial({"neck": "none"}, 0.20, seed=1),
    ]
    decision = decide(record(trials))
    assert decision.winner == "mln" and decision.trial == trials[1]


def test_cost_takes_the_fastest_within_noise_but_not_the_fastest_of_all() -> None:
    costs = {"none": cost(90.0), "mln": cost(60.0), "ln_mln": cost(50.0)}
    decision = decide(sweep_of_necks(CLOSE, rule="cost", costs=costs))
    assert decision.winner == "mln" and decision.within_noise == ("ln_mln",)
    assert "cheapest of the 2 configurations" in decision.reason and "60.0 images/s" in decision.reason
    assert "ln_mln has 42.00%" in decision.reason
    assert decide(sweep_of_necks(CLOSE, rule="score", costs=costs)).winner == "ln_mln"


def test_cost_takes_the_least_memory_among_the_equally_fast() -> None:
    costs = {"none": cost(90.0), "mln": cost(60.0, memory=3.0), "ln_mln": cost(58.0, memory=2.0)}
    assert decide(sweep_of_necks(CLOSE, rule="cost", costs=costs)).winner == "ln_mln"
    slower = costs | {"ln_mln": cost(56.0, memory=2.0)}
    assert decide(sweep_of_necks(CLOSE, rule="cost", costs=slower)).winner == "mln"


def test_cost_takes_the_highest_mean_where_noise_or_costs_are_unknown() -> None:
    costs = {"none": cost(90.0), "mln": cost(60.0)}
    single = decide(sweep_of_necks({"none": [0.40], "mln": [0.41]}, rule="cost", costs=costs))
    assert single.winner == "mln" and single.within_noise == () and not single.noise_known
    unmeasured = decide(sweep_of_necks(CLOSE, rule="cost"))
    assert unmeasured.winner == "ln_mln" and "no cost was measured" in unmeasured.reason


def test_single_seeds_are_decided_with_a_warning() -> None:
    decision = decide(sweep_of_necks({"none": [0.40], "mln": [0.41]}))
    assert decision.winner == "mln" and decision.trial.name == "mln-seed0"
    assert decision.reason == (
        "mln has the highest mean mIoU: 41.00% with one seed. "
        "Noise is unknown with so few seeds, and the order may be chance; run with --seeds 3 to know."
    )


def test_lucky_single_seed_does_not_win_over_repeated_ones() -> None:
    decision = decide(sweep_of_necks({"lucky": [0.425], **CLOSE}))
    assert decision.winner == "ln_mln" and set(decision.within_noise) == {"lucky", "mln"}
    assert "of those with more than one seed" in decision.reason


def test_only_configuration_is_told_as_such() -> None:
    decision = decide(sweep_of_necks({"mln": [0.40, 0.41, 0.43]}))
    assert decision.noise_known and decision.within_noise == ()
    assert decision.reason.startswith("mln is the only configuration with a finished trial: mIoU 41.33% over 3 seeds")


def test_no_finished_trial_is_an_error_with_the_first_reason() -> None:
    trials = [
        trial({"neck": "none"}, 0.3, status="stopped"),
        trial({"neck": "mln"}, None, status="failed"),
        trial({"neck": "ln_mln"}, None, status="failed").model_copy(update={"error": "another"}),
    ]
    with pytest.raises(VitrailError, match=r"1 stopped, 2 failed\); the first to fail, mln-seed0: CUDA out of memory"):
        decide(record(trials))
    with pytest.raises(VitrailError, match=r"sweep necks has finished with a validation \(1 stopped\)$"):
        decide(record(trials[:1]))
    with pytest.raises(VitrailError, match="there are none"):
        decide(record([]))


def test_pareto_front_matches_brute_force() -> None:
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(200):
        # Few distinct values, so that points coincide and share coordinates.
        points = {str(n): (float(x), float(y)) for n, (x, y) in enumerate(rng.integers(0, 8, (rng.integers(1, 15), 2)))}
        dominated = {
            a
            for a, b in itertools.permutations(points, 2)
            if points[b] != points[a] and points[b][0] >= points[a][0] and points[b][1] >= points[a][1]
        }
        front = pareto_front(points)
        assert set(front) == set(points) - dominated and len(front) == len(set(front))
        assert [points[name][0] for name in front] == sorted(points[name][0] for name in front)
        sizes.append(len(front))
    assert max(sizes) > 3
