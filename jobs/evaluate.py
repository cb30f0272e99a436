"""Score a model on a split of a data set.

uv run jobs/evaluate.py models:/camvid@champion --data DIR
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import exit_codes


def main(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, or models:/NAME@alias or models:/NAME/VERSION.")],
    data: Annotated[Path, typer.Option(help="A data set made by pipelines/prepare.py.")],
    split: str = "validation",
    ms_flip: Annotated[bool, typer.Option(help="Average over six scales, each also mirrored.")] = False,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0)] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Write the scores here as JSON too.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of runs, for the local MLflow store.")] = Path("runs"),
    tracking_uri: Annotated[str | None, typer.Option(envvar="MLFLOW_TRACKING_URI")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster [default: RAY_ADDRESS, or this machine].")] = None,
) -> None:
    """Print mIoU, mAcc, aAcc and the IoU of every class."""
    with exit_codes():
        from vitrail.cluster.evaluate import evaluate_model, print_scores
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.store import default_tracking_uri

        checkpoint = fetch_model(model, root=root, tracking_uri=tracking_uri or default_tracking_uri(root))
        with ray_cluster(address):
            record = evaluate_model(
                checkpoint, data, split=split, ms_flip=ms_flip, workers=workers, gpus_per_worker=gpus_per_worker
            )
        print_scores(checkpoint, record)
        if out is not None:
            out.write_text(json.dumps(record.model_dump(mode="json"), indent=1))


if __name__ == "__main__":
    typer.run(main)
