"""From images of any size to label maps of the same sizes, as a recipe tests its model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.config import Recipe
from vitrail.data.geometry import Size, resize_image, scaled_size
from vitrail.evaluation.inference import build_inference, build_ms_flip, resized_argmax
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.models.normalize import normalize
from vitrail.models.segmentor import Segmentor

Image = NDArray[np.uint8]
"""RGB, (H, W, 3)."""
View = NDArray[np.uint8]
"""What the network is to see, not yet normalised: RGB (3, h, w) of one image, or (N, 3, h, w) of several."""
LabelMap = NDArray[np.uint8]
"""Train ids, (H, W)."""


class Predictor:
    """A model with its recipe's resize, normalisation and inference around it.

    With `ms_flip`, softmax is averaged over the scales of `recipe.ms_flip` and their mirror images instead.

    The network, and it alone, runs inside what `autocast` returns:

        Predictor(model, recipe, device, autocast=lambda: torch.autocast("cuda", torch.bfloat16))
    """

    def __init__(
        self,
        model: Segmentor,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        *,
        ms_flip: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self._scale = recipe.transforms.scale
        self._inference = build_inference(recipe.inference)
        self._ms_flip = build_ms_flip(recipe) if ms_flip else None
        self._autocast = autocast

    @property
    def max_images(self) -> int | None:
        """How many images of one size go into a batch, where memory alone does not decide.

        One with `ms_flip`, which holds probabilities of all classes at the original size, and more than one copy.
        """
        return None if self._ms_flip is None else 1

    def view_sizes(self, size: Size) -> list[Size]:
        """The sizes at which the network sees an image of this size: one, or one per ratio of `ms_flip`."""
        return [scaled_size(size, self._scale)] if self._ms_flip is None else self._ms_flip.view_sizes(*size)

    def views(self, image: Image) -> list[View]:
        """(H, W, 3) -> (3, h, w) for each of `view_sizes`. Safe to call from many threads."""
        resized = (resize_image(image, size) for size in self.view_sizes((image.shape[0], image.shape[1])))
        return [np.stack(cv2.split(view)) for view in resized]

    @torch.inference_mode()
    def labels(self, views: Sequence[View], sizes: Sequence[Size]) -> list[Tensor]:
        """Train ids (H, W), int64 and on the device, of N images; nothing here waits for the device.

        Args:
            views: what `views` returned for the images, stacked: (N, 3, h, w) for each of `view_sizes`.
            sizes: the images' own sizes, which need not agree.
        """
        with self._evaluating():
            if self._ms_flip is not None:
                parts = [[view[n : n + 1] for view in views] for n in range(len(sizes))]
                return [self._scores(part, size).argmax(0) for part, size in zip(parts, sizes, strict=True)]
            images = self._normalized(views[0])
            logits = self._inference.logits(self._network, images)
            seen: Size = (images.shape[2], images.shape[3])
            # One by one, because the sizes differ; each is large enough to keep a device busy.
            return [resized_argmax(logits[n : n + 1], (seen, size))[0] for n, size in enumerate(sizes)]

    @torch.inference_mode()
    def scores(self, image: Image) -> Tensor:
        """(H, W, 3) -> logits, or probabilities with `ms_flip`: (K, H, W) at the image's own size, on the device."""
        with self._evaluating():
            return self._scores([view[None] for view in self.views(image)], (image.shape[0], image.shape[1]))

    def __call__(self, image: Image) -> LabelMap:
        """(H, W, 3) -> (H, W)"""
        views = [view[None] for view in self.views(image)]
        labels: LabelMap = self.labels(views, [(image.shape[0], image.shape[1])])[0].to(torch.uint8).cpu().numpy()
        return labels

    def to_device(self, array: NDArray[np.uint8]) -> Tensor:
        """The array on the device, or on its way there behind what the device has still to do."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from memory that can be paged out, the copy would wait for the device
        return tensor.to(self.device, non_blocking=True)

    def _scores(self, views: Sequence[View], size: Size) -> Tensor:
        """Of one image, its views (1, 3, h, w)."""
        if self._ms_flip is None:
            return self._inference(self._network, self._normalized(views[0]), size)[0]
        return self._ms_flip(self._network, map(self._normalized, views), size)[0]

    def _normalized(self, view: View) -> Tensor:
        return normalize(self.to_device(view), None)

    def _network(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model(images)  # type: ignore[no-any-return]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


@dataclass
class Evaluation:
    """Counts over some images, and how many images they were."""

    matrix: ConfusionMatrix
    images: int = 0


def evaluate(predictor: Predictor, samples: Iterable[tuple[Image, LabelMap]], num_classes: int) -> Evaluation:
    """Predict every sample, one after the other, and compare it at its original size.

    For samples from anywhere; those of a prepared data set are scored faster by `split.evaluate_split`.
    """
    evaluation = Evaluation(ConfusionMatrix(num_classes))
    for image, label in samples:
        evaluation.matrix.update(torch.from_numpy(predictor(image)), torch.from_numpy(label))
        evaluation.images += 1
    return evaluation
