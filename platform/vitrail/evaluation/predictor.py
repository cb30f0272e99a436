"""From an image of any size to a label map of the same size, as a recipe tests its model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.config import Recipe
from vitrail.data.geometry import resize_image
from vitrail.data.transforms import resize_for_test
from vitrail.evaluation.inference import build_inference, build_ms_flip
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.models.normalize import normalize
from vitrail.models.segmentor import Segmentor

Image = NDArray[np.uint8]
"""RGB, (H, W, 3)."""
LabelMap = NDArray[np.uint8]
"""Train ids, (H, W)."""


class Predictor:
    """A model with its recipe's resize, normalisation and inference around it.

    With `ms_flip`, softmax is averaged over the scales of `recipe.ms_flip` and their mirror images instead.
    """

    def __init__(
        self, model: Segmentor, recipe: Recipe, device: torch.device | str = "cpu", *, ms_flip: bool = False
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self._transforms = recipe.transforms
        self._inference = build_inference(recipe.inference)
        self._ms_flip = build_ms_flip(recipe) if ms_flip else None

    @torch.inference_mode()
    def scores(self, image: Image) -> Tensor:
        """(H, W, 3) -> logits, or probabilities with `ms_flip`: (K, H, W) at the image's own size, on the device."""
        out_size = image.shape[:2]
        was_training = self.model.training
        self.model.eval()
        try:
            if self._ms_flip is None:
                scores = self._inference(self.model, self._view(resize_for_test(image, self._transforms)), out_size)
            else:
                sizes = self._ms_flip.view_sizes(*out_size)
                views = (self._view(resize_image(image, size)) for size in sizes)
                scores = self._ms_flip(self.model, views, out_size)
        finally:
            self.model.train(was_training)
        return scores[0]

    def __call__(self, image: Image) -> LabelMap:
        """(H, W, 3) -> (H, W)"""
        labels: LabelMap = self.scores(image).argmax(0).to(torch.uint8).cpu().numpy()
        return labels

    def _view(self, resized: Image) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None]
        return normalize(batch.to(self.device), None)


@dataclass
class Evaluation:
    """Counts over some images, and how many images they were."""

    matrix: ConfusionMatrix
    images: int = 0


def evaluate(predictor: Predictor, samples: Iterable[tuple[Image, LabelMap]], num_classes: int) -> Evaluation:
    """Predict every sample and compare it at its original size."""
    evaluation = Evaluation(ConfusionMatrix(num_classes))
    for image, label in samples:
        evaluation.matrix.update(torch.from_numpy(predictor(image)), torch.from_numpy(label))
        evaluation.images += 1
    return evaluation
