"""Score a model on a split of a data set.

    uv run jobs/evaluate.py models:/camvid@champion --data DIR

MODEL may also be a checkpoint's folder, or a file that `vitrail weights import` wrote, so that a published
mmsegmentation model is scored as it was published.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from vitrail import options
from vitrail.errors import exit_codes


def main(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder or imported file, also s3:// or gs://; or models:/NAME@alias.")
    ],
    data: options.Data,
    split: str = "validation",
    ms_flip: Annotated[bool, typer.Option(help="Average over six scales, each also mirrored.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Test otherwise: inference.kind=slide, ms_flip.relative_to=image, …"),
    ] = None,
    workers: options.Workers = 1,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    out: Annotated[str | None, typer.Option(help="Write the scores here as JSON too; also s3:// or gs://.")] = None,
    root: options.Root = Path("runs"),
    tracking_uri: options.TrackingUri = None,
    address: options.Address = None,
) -> None:
    """Print mIoU, mAcc, aAcc and the IoU of every class."""
    with exit_codes():
        from vitrail.cluster.evaluate import evaluate_model, print_scores
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.data.manifest import Manifest
        from vitrail.evaluation.trained import open_model
        from vitrail.stored_file import writing_file
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.store import default_tracking_uri
        from vitrail.training.checkpoint import score_record

        path = fetch_model(model, root=root, tracking_uri=tracking_uri or default_tracking_uri(root))
        segmentor, described = open_model(path)
        described = described.tested_as(set_ or [])
        with ray_cluster(address):
            counts = evaluate_model(
                segmentor,
                described,
                data,
                split=split,
                ms_flip=ms_flip,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
            )
        record = score_record(counts.scores(), len(counts))
        print_scores(described, Manifest.load(data).classes, record)
        if out is not None:
            with writing_file(out) as file:
                file.write_text(json.dumps(record.model_dump(mode="json"), indent=1))


if __name__ == "__main__":
    typer.run(main)
