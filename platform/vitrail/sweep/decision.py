"""The configuration that a sweep speaks for, and why."""

from collections import Counter

from vitrail.errors import VitrailError
from vitrail.strict import Strict
from vitrail.sweep.record import SweepRecord, Trial
from vitrail.sweep.statistics import ConfigurationScores, SweepStatistics, finished_trials, summarise

SAME_SPEED = 0.05
"""Speeds are measured for a moment, so those this close to the fastest, as a share, count as equal to it."""


class Decision(Strict):
    """What to use."""

    winner: str
    """The configuration's label."""
    trial: Trial
    """Its seed of the highest mIoU, whose checkpoint is the one to use."""
    reason: str
    """In plain words."""
    within_noise: tuple[str, ...]
    """Labels of the other configurations that cannot be told from the winner, the highest mean first."""
    noise_known: bool


def decide(record: SweepRecord) -> Decision:
    """Choose by the sweep's rule among the configurations with a finished trial.

    Where some configurations have more than one finished seed, those with one are passed over: of many tried once, the
    highest owes most to luck. Of the others, `score` takes the highest mean mIoU, and `cost` the cheapest of those
    within noise of the highest mean, or that itself where noise is unknown. Cheapest is what predicts the most images
    per second, since a model is trained once and used for long; among equally fast ones (`SAME_SPEED`), what needs the
    least memory in training, which tells the size of the GPU to buy. Nominal FLOPs tell little of either.

    Raises:
        VitrailError: no trial has finished.
    """
    statistics = summarise(record)
    if not statistics.configurations:
        raise VitrailError(_why_nothing_finished(record))
    candidates = [scores for scores in statistics.configurations if scores.n > 1] or statistics.configurations
    highest = candidates[0]
    alike = [scores for scores in candidates if scores is highest or _alike(statistics, scores, highest)]
    winner = highest if record.rule == "score" else _cheapest(alike, record)
    others = [scores for scores in statistics.configurations if scores is not winner]
    within_noise = tuple(scores.label for scores in others if _alike(statistics, scores, winner))
    is_plain = record.rule == "score" or len(alike) == 1
    reason = _why_the_highest(winner, statistics) if is_plain else _why_the_cheapest(winner, alike, record, statistics)
    about_noise = _about_noise(len(within_noise), len(others), statistics)
    return Decision(
        winner=winner.label,
        trial=max(finished_trials(record, winner.label), key=lambda trial: trial.best.miou if trial.best else 0.0),
        reason=f"{reason} {about_noise}".rstrip(),
        within_noise=within_noise,
        noise_known=statistics.noise is not None,
    )


def _in_words(scores: ConfigurationScores) -> str:
    """`41.23% over 3 seeds (95% interval 40.71% to 41.75%)`."""
    if scores.interval is None:
        return f"{scores.mean:.2%} with one seed"
    interval = f"95% interval {scores.interval.low:.2%} to {scores.interval.high:.2%}"
    return f"{scores.mean:.2%} over {scores.n} seeds ({interval})"


def _alike(statistics: SweepStatistics, a: ConfigurationScores, b: ConfigurationScores) -> bool:
    return statistics.within_noise(a.label, b.label) is True


def _cheapest(alike: list[ConfigurationScores], record: SweepRecord) -> ConfigurationScores:
    """`alike` has the highest mean first, which is taken where no cost is known and where costs are equal."""
    measured = [scores for scores in alike if scores.label in record.costs]
    if not measured:
        return alike[0]
    fastest = max(record.costs[scores.label].predict_images_per_s for scores in measured)
    fast = [s for s in measured if record.costs[s.label].predict_images_per_s >= (1 - SAME_SPEED) * fastest]
    return min(fast, key=lambda scores: record.costs[scores.label].peak_memory_gib)


def _why_the_highest(winner: ConfigurationScores, statistics: SweepStatistics) -> str:
    if len(statistics.configurations) == 1:
        return f"{winner.label} is the only configuration with a finished trial: mIoU {_in_words(winner)}."
    among = "" if winner is statistics.configurations[0] else " of those with more than one seed"
    return f"{winner.label} has the highest mean mIoU{among}: {_in_words(winner)}."


def _why_the_cheapest(
    winner: ConfigurationScores, alike: list[ConfigurationScores], record: SweepRecord, statistics: SweepStatistics
) -> str:
    highest = alike[0]
    cost = record.costs.get(winner.label)
    if cost is None:
        return (
            f"{winner.label} has the highest mean mIoU, {_in_words(winner)}; no cost was measured of it and of the "
            f"{len(alike) - 1} within noise."
        )
    among = " with more than one seed" if any(scores.n == 1 for scores in statistics.configurations) else ""
    than = "the highest of them" if winner is highest else f"where {highest.label} has {highest.mean:.2%}"
    return (
        f"{winner.label} is the cheapest of the {len(alike)} configurations{among} that noise does not separate "
        f"from the highest mean: it predicts {cost.predict_images_per_s:,.1f} images/s and trains in "
        f"{cost.peak_memory_gib:.2f} GiB, with a mean mIoU of {_in_words(winner)}, {than}."
    )


def _about_noise(alike: int, others: int, statistics: SweepStatistics) -> str:
    if statistics.noise_unknown:
        return statistics.noise_unknown
    if not others:
        return ""
    if alike == others > 1:
        return f"All {others} others are within noise of it."
    if others == 1:
        return f"The one other is {'' if alike else 'not '}within noise of it."
    return f"{alike or 'None'} of the {others} others {'is' if alike <= 1 else 'are'} within noise of it."


def _why_nothing_finished(record: SweepRecord) -> str:
    failed = next((trial for trial in record.trials if trial.status == "failed"), None)
    counts = Counter(trial.status for trial in record.trials)
    states = ", ".join(f"{count} {status}" for status, count in counts.items()) or "there are none"
    reason = f"; the first to fail, {failed.name}: {failed.error or 'for no known reason'}" if failed else ""
    return f"no trial of sweep {record.name} has finished with a validation ({states}){reason}"
