"""`vitrail weights`: weights of other projects in, and out again."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vitrail.checkpoint import INFO
from vitrail.checkpoint_store import StoredCheckpoint
from vitrail.config import MIN_COVERAGE
from vitrail.data.storage import Folder
from vitrail.errors import exit_codes
from vitrail.models.naming import ExportFormat
from vitrail.stored_file import fetch_file, is_stored, writing_file

weights_app = typer.Typer(no_args_is_help=True)


@weights_app.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(help="mmsegmentation, timm, DeiT, safetensors or JAX .npz; also s3:// or gs://.")
    ],
    out: Annotated[str, typer.Argument(help="The safetensors file to write; also s3:// or gs://.")],
    recipe: Annotated[
        str | None, typer.Option(help="The model they are for; else it follows from the tensors.")
    ] = None,
    min_coverage: Annotated[float, typer.Option(help="Share of the backbone's parameters below which to refuse.")] = (
        MIN_COVERAGE
    ),
) -> None:
    """Recognise a file of weights, say what it covers, and write it as safetensors with its architecture."""
    from vitrail.models.convert import import_weights  # brings torch, which other commands do without

    with exit_codes():
        with writing_file(out) as path:
            imported = import_weights(fetch_file(file), path, recipe=recipe, min_coverage=min_coverage)
        backbone = imported.model.backbone
        parts = ["ViT", f"{backbone.embed_dim} wide", f"{backbone.depth} blocks"]
        if imported.segmentor:
            parts += ["neck" if imported.model.neck else "no neck", f"{imported.model.num_classes} classes"]
            parts.append(f"tested as {imported.recipe.name}" if imported.recipe else "of no known recipe")
        else:
            parts.append("backbone alone")
        _print([f"model: {', '.join(parts)}", *imported.coverage.lines(), f"written: {out}"])


@weights_app.command("export")
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint's folder, or any file that can be imported; also s3:// or gs://.")
    ],
    file: Annotated[str, typer.Argument(help="The file to write; also s3:// or gs://.")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="What the file is for.")] = "mmseg",
) -> None:
    """Write weights as mmsegmentation, timm or plain safetensors name them."""
    from vitrail.models.weights import export_weights, load_weights

    with exit_codes():
        tensors, _ = load_weights(_fetched(checkpoint))
        with writing_file(file) as path:
            export_weights(tensors, path, format=format_)
        _print([f"written: {file} ({format_}, {len(tensors)} tensors read)"])


def _fetched(checkpoint: str) -> Path:
    if is_stored(checkpoint) and Folder.at(checkpoint).size_bytes(INFO) is not None:
        return StoredCheckpoint.at(checkpoint).fetch(state=False)
    return fetch_file(checkpoint)


def _print(lines: list[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False)
