"""What is known of a sweep at any moment: its trials, their scores, and what each model costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vitrail.data.files import write_aside
from vitrail.strict import Strict

Value = str | int | float | bool
Configuration = dict[str, Value]
"""What was chosen for each dimension of the search space; the seed is none of them."""
Status = Literal["waiting", "running", "finished", "stopped", "failed"]
Rule = Literal["score", "cost"]
"""How the best configuration is named: the highest mean mIoU, or the cheapest within noise of it."""


class Score(Strict):
    """One validation."""

    step: int
    miou: float


class Trial(Strict):
    """One training run of a sweep: a configuration with a seed."""

    name: str
    configuration: Configuration
    seed: int
    total_steps: int
    status: Status = "waiting"
    step: int = 0
    """Reached so far."""
    scores: tuple[Score, ...] = ()
    """By step."""
    seconds: float = 0.0
    """Of training, over all starts."""
    checkpoint: str | None = None
    """Where the best one is, seen from the sweep's folder, for a person to find it."""
    error: str | None = None
    """Why it failed, in a line."""

    @property
    def best(self) -> Score | None:
        """The validation of the highest mIoU."""
        return max(self.scores, key=lambda score: score.miou, default=None)

    @property
    def label(self) -> str:
        """The configuration in words, the same for every seed."""
        return label(self.configuration)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("finished", "stopped", "failed")

    def scored(self, score: Score) -> "Trial":
        """The trial after a validation; one that is known already changes nothing, as after a restart."""
        scores = {known.step: known for known in self.scores}
        scores.setdefault(score.step, score)
        ordered = tuple(scores[step] for step in sorted(scores))
        return self.model_copy(update={"scores": ordered, "step": max(self.step, score.step)})


class Cost(Strict):
    """What a configuration's model costs, measured alone for a moment on a machine of the sweep."""

    train_images_per_s: float
    """Of one worker."""
    predict_images_per_s: float
    """One image at a time, of the crop's size."""
    peak_memory_gib: float
    """Of a training step: allocated on the GPU, or resident of the process on a CPU."""
    parameters: int
    nominal_flops: float
    """Of one image's forward pass with both heads."""


class SweepRecord(Strict):
    """All of a sweep that a report needs."""

    name: str
    recipe: str
    """Of which the trials are variations."""
    data: str
    """The data set's name."""
    val_images: int
    device: str
    workers: int
    """Of each trial."""
    search: str
    scheduler: str
    rule: Rule
    dimensions: dict[str, tuple[Value, ...]]
    """What was varied, with the choices that there were; no choices where values were drawn from a range."""
    trials: tuple[Trial, ...]
    costs: dict[str, Cost]
    """By the configuration's label."""

    @classmethod
    def load(cls, path: Path) -> "SweepRecord":
        """The record in a file."""
        return cls.model_validate_json(path.read_text())

    def save(self, path: Path) -> None:
        """Replace the file; at no moment is there half of one."""
        write_aside(path, self.model_dump_json(indent=1).encode())

    def with_trial(self, trial: Trial) -> "SweepRecord":
        """The record with this trial in place of the one of its name, or added to the others."""
        trials = {known.name: known for known in self.trials} | {trial.name: trial}
        return self.model_copy(update={"trials": tuple(trials.values())})

    def trial(self, name: str) -> Trial | None:
        """The trial of a name."""
        return next((trial for trial in self.trials if trial.name == name), None)

    def trials_of(self, label: str) -> list[Trial]:
        """All seeds of a configuration."""
        return [trial for trial in self.trials if trial.label == label]

    @property
    def labels(self) -> list[str]:
        """Of all configurations, in the order of their first trials."""
        return list(dict.fromkeys(trial.label for trial in self.trials))


def label(configuration: Mapping[str, Value]) -> str:
    """A configuration in words: `mln, cosine, lr 0.001`."""
    return ", ".join(_in_words(name, value) for name, value in configuration.items())


def _in_words(name: str, value: Value) -> str:
    if isinstance(value, str):
        return value
    return f"{name} {str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
