"""The piecewise loss against the plain one: value, accuracy and gradient."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import vitrail.models.loss
from vitrail.models.loss import segmentation_loss


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    enlarged = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(enlarged, labels, ignore_index=255, reduction="none").sum() / labels.numel()
    right = (enlarged.argmax(dim=1) == labels).sum()
    return loss, 100.0 * right / (labels != 255).sum()


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (32, 24)])
@pytest.mark.parametrize("piece_bytes", [1, 5000, 2**30])
def test_piecewise_loss_and_its_gradient_equal_the_plain_ones(
    size: tuple[int, int], piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vitrail.models.loss._PIECE_BYTES, "cpu", piece_bytes)
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 6, *size)).double().requires_grad_()
    labels = torch.randint(0, 6, (3, 32, 24))
    labels[0, :9], labels[1] = 255, 255  # the second image has no label at all
    loss, accuracy = segmentation_loss(logits, labels)
    expected, expected_accuracy = plain_loss(logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert float(accuracy) == pytest.approx(float(expected_accuracy), abs=1e-9)
    (found,) = torch.autograd.grad(3 * loss, [logits])
    (wanted,) = torch.autograd.grad(3 * expected, [logits])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def test_loss_without_gradient_needs_no_graph() -> None:
    logits, labels = torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 16, 16))
    with torch.inference_mode():
        loss, _ = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, plain_loss(logits, labels)[0])


def test_huge_logits_neither_overflow_nor_turn_into_nan() -> None:
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone().requires_grad_()
    loss, accuracy = segmentation_loss(logits, torch.ones(1, 4, 4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert float(accuracy) == 0
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_label_that_no_class_has_is_refused() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        segmentation_loss(torch.randn(1, 4, 2, 2), torch.full((1, 4, 4), 7))
