"""Our models, timed in a process of their own: answers what `answering_models` lists.

python own_model.py '{"recipe": "upernet_vit-nano_128x128_1k", "device": "cpu", "threads": 2, "compute": {}}'
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from vitrail import __version__
from vitrail.benchmark.answering import answer_requests
from vitrail.benchmark.answering_models import ModelAnswers, configure_torch, made_up_labels
from vitrail.config import ComputeConfig, Recipe
from vitrail.evaluation.inference import build_inference, resized_argmax
from vitrail.models.segmentor import Segmentor
from vitrail.recipes import get_recipe
from vitrail.training.optimizer import build_optimizer
from vitrail.training.step import DeviceBatch, LossModule, autocast, train_step


class OwnModel:
    """A recipe's model with random weights on crops of its size."""

    def __init__(self, recipe: Recipe, compute: ComputeConfig, device: str) -> None:
        self.recipe, self.compute, self.device = recipe, compute, device

    def build(self, work: str, batch: int) -> Callable[[], object]:
        """A training step or a prediction of `batch` images."""
        if self.compute.compile:
            torch.compiler.reset()  # or kernels would be compiled for any batch size from the second on
        segmentor = Segmentor(self.recipe.model).to(self.device)
        return self._training(segmentor, batch) if work == "train" else self._prediction(segmentor, batch)

    def _training(self, segmentor: Segmentor, batch: int) -> Callable[[], object]:
        """What a training worker does with a batch on its device: normalise, both losses, backward, AdamW."""
        model = LossModule(segmentor, self.compute).train()
        lr = self.recipe.schedule.peak_lr
        optimizer = build_optimizer(segmentor, self.recipe.optimizer, lr=lr)
        images = self._batch(batch)
        max_norm = self.recipe.optimizer.max_grad_norm
        return lambda: train_step(model, optimizer, images, lr=lr, max_grad_norm=max_norm)

    def _prediction(self, segmentor: Segmentor, batch: int) -> Callable[[], object]:
        """From normalised images to labels of their size, never compiled: images to predict have many sizes."""
        segmentor.eval()
        if self.device == "cuda":
            segmentor.to(memory_format=torch.channels_last)
        side = self.recipe.transforms.crop_size
        x = torch.randn(batch, 3, side, side, device=self.device)
        inference = build_inference(self.recipe.inference)

        def network(images: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, self.compute.precision):
                return segmentor(images)  # type: ignore[no-any-return]

        @torch.inference_mode()
        def predict() -> object:
            logits = inference.logits(network, x)
            return [resized_argmax(logits[n : n + 1], [(side, side)]) for n in range(batch)]

        return predict

    def _batch(self, batch: int) -> DeviceBatch:
        side = self.recipe.transforms.crop_size
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        labels = made_up_labels(batch, side, self.recipe.model.num_classes).to(torch.uint8)
        return images.to(self.device), torch.full((batch, 2), side).to(self.device), labels.to(self.device)


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers requests about the model of the command line."""
    settings = json.loads(sys.argv[1])
    configure_torch(settings["device"], settings["threads"])
    compute = ComputeConfig.model_validate(settings["compute"])
    model = OwnModel(get_recipe(settings["recipe"]), compute, settings["device"])
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    return ModelAnswers(model.build, settings["device"], dtype, versions={"vitrail": __version__})


if __name__ == "__main__":
    answer_requests(prepare)
