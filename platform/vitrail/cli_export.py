"""`vitrail models export`: a trained model as one file that other programs run, compared with the model itself."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from vitrail import options
from vitrail.errors import exit_codes


def export(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, imported file, or models:/NAME@alias (or /VERSION).")
    ],
    out: Annotated[str, typer.Argument(help="The file to write; also s3:// or gs://.")],
    format_: Annotated[Literal["onnx"], typer.Option("--format", help="What the file is for.")] = "onnx",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Describe another test: inference.kind=slide, …")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Deviation of a logit, as a share of their range, above which to refuse.")
    ] = 1e-3,
    root: options.Root = Path("runs"),
    tracking_uri: options.TrackingUri = None,
) -> None:
    """Write a model for onnxruntime, after a comparison with the model itself at several sizes."""
    with exit_codes():
        from vitrail.evaluation.onnx_export import export_onnx
        from vitrail.evaluation.trained import open_model
        from vitrail.stored_file import writing_file
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.store import default_tracking_uri

        path = fetch_model(model, root=root, tracking_uri=tracking_uri or default_tracking_uri(root))
        segmentor, described = open_model(path)
        described = described.tested_as(set_ or [])
        with writing_file(out) as file:
            exported = export_onnx(segmentor, described, file, tolerance=tolerance)
        table = Table("compared at", "N x H x W", "logits off by, of their range", "equal labels", box=None)
        for row in exported.agreements:
            size = " x ".join(map(str, row.size))
            table.add_row(row.what, size, f"{row.deviation:.1e}", f"{row.equal_labels:.4%}")
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        speed = exported.speed
        lines = [
            f"allowed: {tolerance:.0e}; labels may differ where the two best logits are closer than that",
            f"images/s at {speed.height} x {speed.width}: onnxruntime {speed.onnxruntime:.2f}, torch {speed.torch:.2f}",
            f"written: {out} ({format_}, {exported.size_bytes / 1e6:,.1f} MB)",
        ]
        for line in lines:
            console.print(line, markup=False)
