"""Segment a folder of images with a trained model.

    uv run pipelines/predict.py models:/camvid@champion IMAGES OUT

Writes OUT/labels/NAME.png (raw class ids) and OUT/overlays/NAME.jpg (the image under its colours).
"""

from pathlib import Path
from typing import Annotated

import typer

from vitrail import options
from vitrail.errors import exit_codes


def main(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder or imported file, also s3:// or gs://; or models:/NAME@alias.")
    ],
    images: Annotated[str, typer.Argument(help="A folder of JPEG or PNG images; also s3:// or gs://.")],
    out: Annotated[str, typer.Argument(help="Folder to write to; also s3:// or gs://.")],
    workers: options.Workers = 1,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    root: options.Root = Path("runs"),
    tracking_uri: options.TrackingUri = None,
    address: options.Address = None,
) -> None:
    """Predict every image; unreadable ones are listed and make the exit code 1."""
    with exit_codes():
        from vitrail.cluster.predict import UnreadableImagesError, predict_folder
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.data.storage import Folder
        from vitrail.evaluation.trained import open_model
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.store import default_tracking_uri

        path = fetch_model(model, root=root, tracking_uri=tracking_uri or default_tracking_uri(root))
        trained = open_model(path)
        with ray_cluster(address):
            result = predict_folder(*trained, images, out, workers=workers, gpus_per_worker=gpus_per_worker)
        place = Folder.at(out)
        print(f"{len(result.written)} images segmented: {place}/labels, {place}/overlays")
        if result.faults:
            raise UnreadableImagesError(result.faults)


if __name__ == "__main__":
    typer.run(main)
