"""What a command line says of a recipe, and of how it is to be computed.

recipe = override(get_recipe("upernet_vit-nano_mln_128x128_1k"), ["schedule.peak_lr=1e-3", "total_steps=400"])
"""

import json
from collections.abc import Iterable
from typing import Any

from vitrail.config import ComputeConfig, Precision, Recipe
from vitrail.errors import UnknownNameError, UsageError
from vitrail.schedules import Warmup
from vitrail.strict import validated


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """A recipe with `path.to.field=value` applied; values are JSON, or plain text where that fails.

    Raises:
        UsageError: not an assignment, a field that does not exist, or a value that the field refuses.
    """
    values = recipe.model_dump()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r} is not of the form path.to.field=value")
        _assign(values, path.strip(), _parse(text.strip()))
        if path.strip().endswith(".kind"):
            values = validated(Recipe, values).model_dump()  # the new variant's own fields, for what follows
    return validated(Recipe, values)


def choose_compute(precision: Precision, *, gpus: bool, micro_batch: str | None = None, **flags: bool) -> ComputeConfig:
    """What a command line asks for: "auto" precision is bf16 on GPUs and fp32 on CPUs.

    Raises:
        UsageError: a micro-batch that is neither a number of samples nor "auto".
    """
    if precision == "auto":
        precision = "bf16" if gpus else "fp32"
    return validated(
        ComputeConfig, {"precision": precision, "micro_batch": micro_batch and _parse(micro_batch), **flags}
    )


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node = values
    for name in parents:
        node = _member(node, name, path)
    current = _member(node, leaf, path)
    if leaf == "kind" and value != current:
        # Another variant has other fields: keep those that all variants of a schedule share, drop the rest.
        shared = {key: node[key] for key in Warmup.model_fields if key in node}
        node.clear()
        node.update(shared)
    node[leaf] = value


def _member(node: Any, name: str, path: str) -> Any:
    known = node if isinstance(node, dict) else {}
    if name not in known:
        kind = "field" if name == path else f"part of {path!r}:"
        raise UnknownNameError(kind, name, known)
    return known[name]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
