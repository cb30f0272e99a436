"""Losses, accuracies, gradient norms and running statistics of one training step's forward and backward pass.

In float32 within the noise of float32. In float64, where a golden has such figures, within the noise of float64, which
leaves no room for a wrong formula; that takes minutes and runs where VITRAIL_REFERENCE_FLOAT64=1 asks for it (the
training curve is always compared in float64, at a smaller size).
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden, Rules, files
from numpy.typing import NDArray
from reference_models import Noise, build, norms
from torch import Tensor

from vitrail.config import IGNORE_INDEX
from vitrail.models.naming import to_mmseg
from vitrail.models.segmentor import Segmentor

LOSS_RTOL = 1e-5
GRADIENT_RTOL = {"pooled": 5e-3, "heads": 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize("path", files("loss_*.npz"))
def test_losses_and_gradients_equal_mmsegmentation(path: Path, rules: Rules, near: Callable[..., None]) -> None:
    want = dict(np.load(path))
    model, x, labels = problem(Golden.parse(path), want, rules)
    assert int((labels == IGNORE_INDEX).sum()) == want["ignored_pixels"] and labels.numel() == want["total_pixels"]
    ours = run(model, x, labels)

    double = want.get("f64_losses", want["losses"])
    pixel = 100 / int((labels != IGNORE_INDEX).sum())
    for i, name in enumerate(want["loss_names"]):
        atol = 5 * pixel if name.endswith("acc_seg") else 3 * abs(want["losses"][i] - double[i])
        near(path, str(name), ours.losses[name], want["losses"][i], atol=atol, rtol=LOSS_RTOL)

    names = [str(name) for name in want["grad_names"]]
    noise = Noise.of(GRADIENT_RTOL, names, want["grad_norm"], want.get("f64_grad_norm", want["grad_norm"]))
    for name, value in zip(names, want["grad_norm"], strict=True):
        where = "backbone" if name.startswith("backbone") else "neck and heads"
        near(path, f"gradient norms, {where}", ours.gradients[name], value, rtol=noise.allowed(name))
    near(path, "gradient norm, total", ours.gradient, want["grad_norm_total"], rtol=noise.allowed("backbone."))
    statistics = running_statistics(model)
    assert statistics.pop("bn_nbt") == want["bn_nbt"]
    for name, value in statistics.items():
        near(path, "running statistics", value, want[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif("VITRAIL_REFERENCE_FLOAT64" not in os.environ, reason="VITRAIL_REFERENCE_FLOAT64 is not set")
@pytest.mark.parametrize("path", files("loss_*.npz"))
def test_losses_and_gradients_equal_mmsegmentation_in_float64(
    path: Path, rules: Rules, near: Callable[..., None]
) -> None:
    want = dict(np.load(path))
    if "f64_losses" not in want:
        pytest.skip(f"{path.name} has no float64 figures")
    model, x, labels = problem(Golden.parse(path), want, rules)
    ours = run(model.double(), x.double(), labels)
    for name, value in zip(want["loss_names"], want["f64_losses"], strict=True):
        # Accuracies are float32 whatever the model is.
        near(path, "losses in float64", ours.losses[name], value, rtol=1e-6 if name.endswith("acc_seg") else 1e-9)
    for name, value in zip(want["grad_names"], want["f64_grad_norm"], strict=True):
        near(path, "gradient norms in float64", ours.gradients[str(name)], value, rtol=1e-7)
    near(path, "gradient norms in float64", ours.gradient, want["f64_grad_norm_total"], rtol=1e-7)


class Outcome:
    """Losses by mmsegmentation's names, and the L2 norms of the gradients."""

    def __init__(self, losses: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.losses = {"total" if k == "loss" else k: float(v.detach()) for k, v in losses.items()}
        self.gradients = norms(gradients)
        self.gradient = float(np.linalg.norm(list(self.gradients.values())))


def problem(golden: Golden, want: dict[str, NDArray[np.float64]], rules: Rules) -> tuple[Segmentor, Tensor, Tensor]:
    """Model without drop, images and labels of a file."""
    size = int(want["size"])
    batch = int(want["total_pixels"]) // size**2
    x = torch.from_numpy(rules.rand_input(2000 + golden.index, (batch, 3, size, size)))
    labels = torch.from_numpy(rules.rand_labels(2100 + golden.index, batch, size, size))
    return build(golden, rules, size=size, drop=False).train(), x, labels


def run(model: Segmentor, x: Tensor, labels: Tensor) -> Outcome:
    losses = model.loss(x, labels)
    losses["loss"].backward()
    return Outcome(losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def running_statistics(model: Segmentor) -> dict[str, NDArray[np.float32]]:
    buffers = {to_mmseg(name): buffer.numpy() for name, buffer in model.named_buffers()}
    fused, pooled = "decode_head.fpn_bottleneck.bn.", "decode_head.psp_modules.3.1.bn."
    return {
        "bn_mean": buffers[f"{fused}running_mean"],
        "bn_var": buffers[f"{fused}running_var"],
        "bn_ppm_mean": buffers[f"{pooled}running_mean"],
        "bn_ppm_var": buffers[f"{pooled}running_var"],
        "bn_nbt": buffers[f"{fused}num_batches_tracked"],
    }
