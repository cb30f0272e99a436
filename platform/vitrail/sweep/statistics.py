"""Means over seeds, and which differences between configurations the seeds alone could explain.

Only finished trials are averaged: a stopped or failed one has not had its full budget. A trial counts with its best
validation, which is also the one whose checkpoint is kept.
"""

from dataclasses import dataclass
from functools import cache
from itertools import chain
from math import sqrt
from statistics import fmean, stdev, variance

from scipy import stats

from vitrail.sweep.record import SweepRecord, Trial

CONFIDENCE = 0.95
"""Of every interval."""
_MIN_DEGREES_OF_FREEDOM = 2
"""One alone makes intervals thirteen times as wide as the spread itself: no better than not knowing."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From `low` to `high`, as shares of 1."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ConfigurationScores:
    """The best validation mIoU of each finished trial of a configuration; there is at least one."""

    label: str
    scores: tuple[float, ...]

    @property
    def n(self) -> int:
        """Seeds that finished."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.scores)

    @property
    def std(self) -> float | None:
        """Between seeds (n - 1 in the denominator); None for one seed."""
        return stdev(self.scores) if self.n > 1 else None

    @property
    def interval(self) -> Interval | None:
        """Of the mean, by Student's t from these seeds alone; None for one seed."""
        if self.std is None:
            return None
        margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.std / sqrt(self.n)
        return Interval(low=self.mean - margin, high=self.mean + margin)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far seeds are apart within configurations, all configurations together."""

    std: float
    degrees_of_freedom: int
    quantile: float
    """Of the studentized range of as many means as there are configurations."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One configuration's mean less another's, as a share of 1."""

    mean: float
    interval: Interval | None
    """Holds for all pairs at once; None where the noise is unknown."""


@dataclass(frozen=True, kw_only=True)
class SweepStatistics:
    """The configurations that have a finished trial, the highest mean first, and the noise between their seeds."""

    configurations: tuple[ConfigurationScores, ...]
    noise: Noise | None
    """None where it is unknown, which `noise_unknown` then says in words."""

    @property
    def noise_unknown(self) -> str | None:
        """Why the noise is unknown and what to do about it, in a sentence; None where it is known."""
        if self.noise is not None:
            return None
        if _degrees_of_freedom(self.configurations) >= _MIN_DEGREES_OF_FREEDOM:
            return "Noise is unknown: the seeds of each configuration agree to the last digit, as if they had no part."
        return "Noise is unknown with so few seeds, and the order may be chance; run with --seeds 3 to know."

    def of(self, label: str) -> ConfigurationScores | None:
        """A configuration's scores, if one of its trials has finished."""
        return next((scores for scores in self.configurations if scores.label == label), None)

    def difference(self, a: str, b: str) -> Difference | None:
        """The mean of `a` less that of `b`; None where one of them has no finished trial.

        Tukey's honest significant difference with Kramer's extension to unequal numbers of seeds (Tukey 1949, Kramer
        1956): all pairs' intervals hold together with 95 %, however many configurations there are and although the
        best is picked after the fact. One variance is pooled over configurations, so that one with a single seed is
        compared too. Seeds are not paired, though trials of one seed share their data order: two necks draw other
        random numbers from the same seed, so there is little to gain, pairing loses a seed wherever one trial fails,
        and at worst these intervals are too wide.
        """
        first, second = self.of(a), self.of(b)
        if first is None or second is None:
            return None
        mean = first.mean - second.mean
        if self.noise is None:
            return Difference(mean=mean, interval=None)
        margin = self.noise.quantile * self.noise.std * sqrt((1 / first.n + 1 / second.n) / 2)
        return Difference(mean=mean, interval=Interval(low=mean - margin, high=mean + margin))

    def within_noise(self, a: str, b: str) -> bool | None:
        """Whether seeds alone could explain the difference, i.e. its interval holds 0; None where it is unknown."""
        difference = self.difference(a, b)
        if difference is None or difference.interval is None:
            return None
        return difference.interval.low <= 0 <= difference.interval.high


def summarise(record: SweepRecord) -> SweepStatistics:
    """Means and noise of what has finished so far."""
    by_label = {label: finished_trials(record, label) for label in record.labels}
    configurations = [
        ConfigurationScores(label=label, scores=tuple(trial.best.miou for trial in trials if trial.best))
        for label, trials in by_label.items()
        if trials
    ]
    best_first = tuple(sorted(configurations, key=lambda scores: scores.mean, reverse=True))
    return SweepStatistics(configurations=best_first, noise=_noise(best_first))


def finished_trials(record: SweepRecord, label: str) -> list[Trial]:
    """Those trials of a configuration that have had their full budget and a validation: the ones that count."""
    return [trial for trial in record.trials_of(label) if trial.status == "finished" and trial.best]


def ranked_labels(record: SweepRecord, statistics: SweepStatistics) -> list[str]:
    """All configurations, the highest mean first, then those without a finished trial: the numbering of a report."""
    averaged = [scores.label for scores in statistics.configurations]
    return list(dict.fromkeys(chain(averaged, record.labels)))


def _noise(configurations: tuple[ConfigurationScores, ...]) -> Noise | None:
    freedom = _degrees_of_freedom(configurations)
    if freedom < _MIN_DEGREES_OF_FREEDOM:
        return None
    repeated = [scores.scores for scores in configurations if scores.n > 1]
    pooled = sum((len(scores) - 1) * variance(scores) for scores in repeated) / freedom
    if pooled == 0:  # exactly, as `variance` counts in fractions: a noise of 0 would make every difference real
        return None
    return Noise(std=sqrt(pooled), degrees_of_freedom=freedom, quantile=_quantile(len(configurations), freedom))


def _degrees_of_freedom(configurations: tuple[ConfigurationScores, ...]) -> int:
    return sum(scores.n - 1 for scores in configurations)


@cache  # an integral within a search for a root
def _quantile(means: int, degrees_of_freedom: int) -> float:
    return float(stats.studentized_range.ppf(CONFIDENCE, max(2, means), degrees_of_freedom))
