"""What a sweep tries: a small TOML file, or the same from flags.

recipe = "upernet_vit-nano_128x128_1k"
set = ["val_interval=100"]         # as --set of jobs/train.py
seeds = 3                          # every configuration is trained with so many
search = "grid"                    # or "random", "optuna": both need `samples`
scheduler = "none"                 # or "asha", "median", which end poor trials early

[vary]
neck = ["none", "mln", "ln_mln"]
schedule = ["poly", "cosine"]
lr = { low = 1e-4, high = 1e-2, log = true }     # a range, for "random" and "optuna"
"""

import itertools
import math
import random
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from vitrail.config import Recipe
from vitrail.errors import UnknownNameError, UsageError
from vitrail.overrides import override
from vitrail.recipes import get_recipe, with_backbone, with_neck
from vitrail.strict import Strict, validated
from vitrail.sweep.record import Configuration, Rule, Value

Search = Literal["grid", "random", "optuna"]
Scheduler = Literal["none", "asha", "median"]

_PATHS = {
    "schedule": "schedule.kind",
    "lr": "schedule.peak_lr",
    "warmup": "schedule.warmup_steps",
    "steps": "total_steps",
    "batch": "global_batch",
    "layer_decay": "optimizer.layer_decay",
    "weight_decay": "optimizer.weight_decay",
    "drop_path": "model.backbone.drop_path_rate",
}
DIMENSIONS = ("backbone", "neck", *_PATHS)
"""Short names of what can be varied, in the order in which they are applied: a backbone or another kind of schedule
brings fields of its own. Any other `path.to.field` of a recipe can be varied too."""
_COPYING = ("pbt", "pb2", "pbt_replay", "hyperband", "bohb")


class Range(Strict):
    """Numbers between two bounds, both included."""

    low: float
    high: float
    log: bool = False
    """Whether their logarithms are equally likely."""
    integer: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be above 0 on a logarithmic scale")
        return self

    def draw(self, rng: random.Random) -> float | int:
        """One of them."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(f"{value:.4g}")


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    if not values:
        raise ValueError("an empty list leaves nothing to try")
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


Choices = Annotated[tuple[Value, ...], AfterValidator(_distinct)]


class SearchSpace(Strict):
    """What is varied, how it is searched, and how the best is named."""

    recipe: str
    """Of which the trials are variations."""
    set: tuple[str, ...] = ()
    vary: dict[str, Choices | Range] = Field(min_length=1)
    search: Search = "grid"
    samples: PositiveInt | None = None
    """Configurations that a random or Optuna search tries."""
    scheduler: Scheduler = "none"
    seeds: PositiveInt = 1
    confirm: PositiveInt = 3
    """Of a search that ends trials early or samples a space, the best configurations that are then trained with the
    other seeds too; a full grid trains all of them."""
    rule: Rule = "score"

    @model_validator(mode="before")
    @classmethod
    def _refuse_copying(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and str(values.get("scheduler", "")).lower() in _COPYING:
            raise ValueError(
                f"scheduler {values['scheduler']!r} pauses trials or copies weights between them in mid-run, which a "
                "trial that is a data-parallel run of its own does not offer; use asha or median"
            )
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        ranges = [name for name, values in self.vary.items() if isinstance(values, Range)]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid needs lists, but {ranges[0]} is a range; list its values, or search at random")
        if self.search == "grid" and self.samples is not None:
            raise ValueError("a grid tries every combination: samples are for the random and optuna searches")
        if self.search != "grid" and self.samples is None:
            raise ValueError(f"search {self.search!r} needs samples, the number of configurations to try")
        return self

    @classmethod
    def named(cls, name: str, **changes: Any) -> "SearchSpace":
        """The space in the TOML file `name`, or one of the recipe `name`, with the `changes` that are not None.

        What `set` changes comes after what the file's does.

        Raises:
            UsageError: no such file or recipe, not TOML, or a field that is wrong.
        """
        changes = {field: value for field, value in changes.items() if value is not None}
        values = cls._read(Path(name)) if name.endswith(".toml") else {"recipe": name}
        if "vary" not in {**values, **changes}:
            raise UsageError(f"nothing is varied: give --vary NAME=A,B with one of {', '.join(DIMENSIONS)}")
        changes["set"] = [*values.get("set", ()), *changes.get("set", ())]
        return cls.checked(**values | changes)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"cannot read the search space {path}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not TOML: {error}") from None

    @classmethod
    def checked(cls, **values: Any) -> "SearchSpace":
        """A space whose every choice was applied to the recipe once, so that none fails after hours of other trials.

        Raises:
            UsageError: a recipe, dimension or choice that does not exist, or one that the recipe refuses.
        """
        space = validated(cls, values)
        base = space.base
        for name, choices in space.vary.items():
            for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
                integer = isinstance(choices, Range) and choices.integer
                apply(base, {name: int(value) if integer else value})
        for configuration in space.configurations() if space.search == "grid" else ():
            apply(base, configuration)
        return space

    @property
    def base(self) -> Recipe:
        """The recipe before anything is varied."""
        return override(get_recipe(self.recipe), self.set)

    @property
    def size(self) -> int:
        """Configurations that are tried."""
        if self.search == "optuna":
            assert self.samples is not None
            return self.samples
        return len(self.configurations())

    @property
    def is_one_stage(self) -> bool:
        """Whether every configuration is trained with every seed from the start."""
        return self.seeds == 1 or (self.search == "grid" and self.scheduler == "none")

    def configurations(self) -> list[Configuration]:
        """Every combination of a grid, or those that a random search draws: each once, the same ones every time."""
        if self.search == "grid":
            lists = [values for values in self.vary.values() if not isinstance(values, Range)]
            return [dict(zip(self.vary, combination, strict=True)) for combination in itertools.product(*lists)]
        assert self.samples is not None
        rng = random.Random(self.digest())
        drawn: dict[tuple[Value, ...], Configuration] = {}
        for _ in range(100 * self.samples):
            draw = {name: _draw(values, rng) for name, values in self.vary.items()}
            drawn.setdefault(tuple(draw.values()), draw)
            if len(drawn) == self.samples:
                break
        return list(drawn.values())


def apply(recipe: Recipe, configuration: Mapping[str, Value]) -> Recipe:
    """`recipe` with the configuration's choices.

    Raises:
        UsageError: a dimension that does not exist, or a value that it refuses.
    """
    for name in sorted(configuration, key=_turn):
        value = configuration[name]
        if name == "backbone":
            recipe = with_backbone(recipe, str(value))
        elif name == "neck":
            recipe = recipe.model_copy(update={"model": with_neck(recipe.model, str(value))})
        elif name in _PATHS or "." in name:
            text = value if isinstance(value, str) else str(value).lower()
            recipe = override(recipe, [f"{_PATHS.get(name, name)}={text}"])
        else:
            raise UnknownNameError("dimension", name, DIMENSIONS)
    return recipe


def parse_vary(texts: Iterable[str]) -> dict[str, Any]:
    """`neck=none,mln` as a list of choices, `lr=1e-4..1e-2` as a range, `lr=log:1e-4..1e-2` as one of logarithms.

    Raises:
        UsageError: a text of another form.
    """
    vary: dict[str, Any] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise UsageError(f"{text!r} is not of the form NAME=A,B,… or NAME=LOW..HIGH")
        low, dots, high = values.removeprefix("log:").partition("..")
        if dots:
            ends = _number(low), _number(high)
            vary[name] = {
                "low": ends[0],
                "high": ends[1],
                "log": values.startswith("log:"),
                "integer": all(isinstance(end, int) for end in ends),
            }
        else:
            vary[name] = [_number(value) for value in values.split(",")]
    return vary


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def trial_name(configuration: Mapping[str, Value], seed: int) -> str:
    """A folder's name: `mln-cosine-lr0.001-seed0`."""
    parts = [
        value if isinstance(value, str) else f"{name.rpartition('.')[2]}{value:g}"
        for name, value in configuration.items()
    ]
    return "-".join([*parts, f"seed{seed}"]).replace("+", "")


def _turn(name: str) -> int:
    return DIMENSIONS.index(name) if name in DIMENSIONS else len(DIMENSIONS)


def _draw(values: Choices | Range, rng: random.Random) -> Value:
    return values.draw(rng) if isinstance(values, Range) else rng.choice(values)
