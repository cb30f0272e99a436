"""Batch prediction over a folder of images with Ray Data: label maps of raw ids, and overlays to look at."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
import ray
import ray.data
import torch

from vitrail.cluster.runtime import check_feasible, cpu_share
from vitrail.data.codec import check_image, decode_image
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.pictures import overlay
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.trained import TrainedModel
from vitrail.models.segmentor import Segmentor

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_IMAGES_PER_TASK = 8


class UnreadableImagesError(DataError):
    """Some images of a prediction could not be read; the others were predicted."""

    def __init__(self, faults: dict[str, str]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        lines = [f"  {name}: {reason}" for name, reason in sorted(self.faults.items())]
        return f"{len(self.faults)} images could not be read\n" + "\n".join(lines)


@dataclass(frozen=True)
class Prediction:
    """Which images were segmented, and which could not be read and why."""

    written: tuple[str, ...]
    faults: dict[str, str]


def predict_folder(
    model: Segmentor,
    described: TrainedModel,
    images: Place,
    out: Place,
    *,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> Prediction:
    """Segment every image directly in `images` into `out` with a model of `open_model`; Ray must be started.

    `out/labels/STEM.png` holds raw ids (8 bits; train id + 1 where the data set reserves 0 for "unlabelled"),
    `out/overlays/STEM.jpg` the image under the classes' colours.
    """
    source, target = Folder.at(images), Folder.at(out)
    if not source.is_folder():
        raise UsageError(f"{source} is not a folder of images")
    names = [entry.name for entry in source.files() if PurePath(entry.name).suffix.lower() in _SUFFIXES]
    if not names:
        raise UsageError(f"{source} holds no .jpg or .png image")
    _refuse_equal_stems(names)
    for name in ("labels", "overlays"):
        target.child(name).make_writable()
    blocks = -(-len(names) // _IMAGES_PER_TASK)
    workers = min(workers, blocks)
    cpus = cpu_share(workers, on_gpu_machines=gpus_per_worker > 0)
    check_feasible(workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)
    rows = (
        ray.data.from_items([{"name": name} for name in names], override_num_blocks=blocks)
        .map_batches(
            _ImagePredictor,
            fn_constructor_args=(ray.put((model, described)), source, target, cpus),
            batch_size=_IMAGES_PER_TASK,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus_per_worker,
        )
        .take_all()
    )
    faults = {f"{source}/{row['name']}": row["fault"] for row in rows if row["fault"]}
    return Prediction(tuple(sorted(f"{source}/{row['name']}" for row in rows if not row["fault"])), faults)


class _ImagePredictor:
    """One worker's model; a call predicts and writes a batch of images."""

    def __init__(self, trained: ray.ObjectRef, source: Folder, target: Folder, threads: int) -> None:
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self._described = ray.get(trained)
        self._predictor = Predictor(model.to(device), self._described.recipe, device)
        self._source, self._target = source, target

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in batch["name"]]
        return {"name": np.array(names), "fault": np.array([self._predict(name) for name in names])}

    def _predict(self, name: str) -> str:
        """Write what the model sees in one image; returns why it could not be read, or an empty string."""
        try:
            data = self._source.read(name)
            check_image(data)
            image = decode_image(data)
        except (OSError, DataError) as error:
            return str(error)
        label = self._predictor(image)
        raw = label + np.uint8(self._described.reduce_zero_label)
        colours = overlay(image, label, self._described.palette)
        stem = PurePath(name).stem
        self._write(f"labels/{stem}.png", raw)
        self._write(f"overlays/{stem}.jpg", cv2.cvtColor(colours, cv2.COLOR_RGB2BGR))
        return ""

    def _write(self, name: str, array: Any) -> None:
        ok, encoded = cv2.imencode(PurePath(name).suffix, array)
        assert ok
        self._target.write(name, encoded.tobytes())


def _refuse_equal_stems(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        stem = PurePath(name).stem
        if stem in seen:
            raise UsageError(f"{seen[stem]} and {name} would both be written to {stem}.png")
        seen[stem] = name
