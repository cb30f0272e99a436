"""Printing records: one as it is, and those of models as the published table with our figures beside it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from vitrail.benchmark.model import FP32, MEMORY_BATCH, PEER_FP32, ModelFigures, SideFigures
from vitrail.benchmark.record import BenchmarkRecord
from vitrail.config import Recipe
from vitrail.errors import UsageError
from vitrail.recipes import RECIPES

MODEL = "model"
"""What records of models say that they are."""

_COLUMNS = (
    "row",
    "mIoU, published",
    "memory, published (GB)",
    "memory (GiB)",
    "fps, published",
    "fps",
    "fps, best batch",
    "training (images/s)",
    "best",
    "training / peer",
    "fps / peer",
)
_PAGE_WIDTH = 200
"""Columns of a page where there is no terminal to ask."""
_NOTES = (
    "Of two figures, the first is fp32, without TF32, and the second what trains fastest, which `best` names with its "
    f"batch size. Memory is that of a training step at batch {MEMORY_BATCH}: allocated on a GPU, or resident in a "
    "process on a CPU. fps is of whole images of the crop's size: network, resizing and argmax, at batch 1 and at the "
    "best of several. The peer is mmsegmentation, timed in turn on the same machine: fp32 against its fp32, best "
    "against the faster of its fp32 and AMP, at the same batch size. The published figures are of V100s in float32, "
    "8 of them in training."
)


@dataclass(frozen=True)
class MachineTable:
    """The published rows with what one machine made of them."""

    title: str
    rows: list[list[str]]


def published_tables(folder: Path) -> list[MachineTable]:
    """One for each machine that records in `folder` are of; where a row was measured twice, the later one.

    Raises:
        UsageError: there is no record of models.
    """
    records = _model_records(folder)
    if not records:
        raise UsageError(f"{folder} has no record of models; make one with jobs/benchmark.py model --all --out FILE")
    machines: dict[str, dict[str, ModelFigures]] = {}
    for record in records:
        rows = machines.setdefault(f"{record.results['device'].upper()}: {record.machine_name}", {})
        figures = record.results["architectures"]
        for name, measured_as in record.results["rows"].items():
            rows[name] = ModelFigures.model_validate(figures[measured_as])
    return [MachineTable(title, [_row(r, rows.get(r.name)) for r in _listed(rows)]) for title, rows in machines.items()]


def print_tables(tables: Iterable[MachineTable]) -> None:
    """On the terminal, with names that leave room for figures."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PAGE_WIDTH)
    for each in tables:
        table = Table(*_COLUMNS, title=each.title)
        table.columns[0].no_wrap = True
        for name, *figures in each.rows:
            table.add_row(name.removeprefix("upernet_").removesuffix("_ade20k").replace("_512x512_", " "), *figures)
        console.print(table)
    console.print(_NOTES)


def as_markdown(tables: Iterable[MachineTable]) -> str:
    """The same for a page."""
    parts = []
    for table in tables:
        lines = [_COLUMNS, ["---"] * len(_COLUMNS), *table.rows]
        parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, _NOTES]) + "\n"


def print_record(record: BenchmarkRecord) -> None:
    """Every figure in a row of its own."""
    table = Table("what", "figure", title=f"{record.benchmark}: {record.machine_name}")
    _add_rows(table, record.results, depth=0)
    Console().print(table)


def _add_rows(table: Table, values: dict[str, Any], *, depth: int) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            if depth == 0:
                table.add_section()
            table.add_row("  " * depth + f"[bold]{name}[/]", "")
            _add_rows(table, value, depth=depth + 1)
        else:
            table.add_row("  " * depth + name, f"{value:.4g}" if isinstance(value, float) else str(value))


def _model_records(folder: Path) -> list[BenchmarkRecord]:
    """In the order in which they were made."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = BenchmarkRecord.model_validate_json(path.read_text())
        except ValidationError as error:
            raise UsageError(f"{path} is no record of jobs/benchmark.py: {error.errors()[0]['msg']}") from None
        if record.benchmark == MODEL:
            found.append(record)
    return sorted(found, key=lambda record: record.started)


def _listed(rows: dict[str, ModelFigures]) -> list[Recipe]:
    """All published rows, and what else was measured."""
    return [recipe for name, recipe in RECIPES.items() if recipe.published or name in rows]


def _row(recipe: Recipe, figures: ModelFigures | None) -> list[str]:
    published = recipe.published
    columns = (published.miou, published.memory_gb, published.fps) if published else (None,) * 3
    miou, memory, fps = map(_number, columns)
    if figures is None:
        return [recipe.name, miou, memory, "", fps, *[""] * 6]
    fp32, best = figures.ours[FP32], figures.ours[figures.best]
    batches = _fastest_batch(fp32), _fastest_batch(best)
    return [
        recipe.name,
        miou,
        memory,
        _pair(fp32.peak_memory_gib, best.peak_memory_gib),
        fps,
        _pair(fp32.predict_images_per_s[1], best.predict_images_per_s[1]),
        _pair(fp32.best_predict, best.best_predict),
        _pair(fp32.best_train, best.best_train),
        f"{figures.best}, {batches[1]}",
        _pair(
            _ratio(figures, FP32, [PEER_FP32], f"train, batch {batches[0]}"),
            _ratio(figures, figures.best, figures.peers, f"train, batch {batches[1]}"),
        ),
        _pair(
            _ratio(figures, FP32, [PEER_FP32], "predict, batch 1"),
            _ratio(figures, figures.best, figures.peers, "predict, batch 1"),
        ),
    ]


def _fastest_batch(side: SideFigures) -> int:
    return max(side.train_images_per_s, key=lambda batch: side.train_images_per_s[batch] or 0.0)


def _ratio(figures: ModelFigures, ours: str, peers: Iterable[str], work: str) -> float | None:
    """Our speed over the fastest of those peers that had the memory; None where there is none."""
    pairs = (figures.ratios.get(f"{ours} / {peer}", {}).get(work) for peer in peers)
    return min((ratio for ratio in pairs if ratio is not None), default=None)


def _pair(fp32: float | None, best: float | None) -> str:
    return "" if fp32 is None and best is None else f"{_number(fp32) or '-'} / {_number(best) or '-'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
