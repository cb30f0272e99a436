"""The piecewise argmax against `argmax` of the whole: bit for bit, ties and NaN included, in bounded memory."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitrail.evaluation.inference import WholeInference, resized_argmax

SIZES = ((40, 56), (83, 33))


def whole(logits: Tensor, sizes: tuple[tuple[int, int], ...] = SIZES) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits, size=size, mode="bilinear")
    return logits.argmax(1)


def bytes_of(classes: int, batch: int = 1) -> int:
    """What so many classes take at both sizes in float32."""
    return classes * batch * sum(height * width for height, width in SIZES) * 4


@pytest.mark.parametrize("classes_held", [1, 2, 7, 12, 13, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_pieces_of_any_size_equal_the_argmax_of_the_whole(classes_held: int, batch: int) -> None:
    logits = torch.randn(batch, 13, 10, 14, generator=torch.Generator().manual_seed(classes_held))
    labels = resized_argmax(logits, SIZES, max_bytes=bytes_of(classes_held, batch))
    assert labels.shape == (batch, *SIZES[-1]) and labels.dtype == torch.int64
    assert torch.equal(labels, whole(logits))


def test_less_memory_than_one_class_needs_still_gives_the_argmax() -> None:
    logits = torch.randn(1, 5, 10, 14)
    assert torch.equal(resized_argmax(logits, SIZES, max_bytes=1), whole(logits))


def test_channels_last_logits_give_the_same() -> None:
    logits = torch.randn(2, 13, 10, 14).to(memory_format=torch.channels_last)
    assert torch.equal(resized_argmax(logits, SIZES, max_bytes=bytes_of(3, 2)), whole(logits))


def test_first_of_equal_classes_wins_across_pieces() -> None:
    torch.manual_seed(0)
    levels = torch.randint(0, 3, (1, 12, 40, 56)).float()  # many ties, and no interpolation that would break them
    labels = resized_argmax(levels, [(40, 56)], max_bytes=2 * 40 * 56 * 4)
    ties = (levels == levels.max(dim=1, keepdim=True).values).sum(1) > 1
    assert ties.float().mean() > 0.5
    assert torch.equal(labels, levels.argmax(1))
    flat = torch.zeros(1, 12, 10, 14)
    assert not resized_argmax(flat, SIZES, max_bytes=bytes_of(5)).any()


@pytest.mark.parametrize("nan_classes", [(0,), (4,), (11,), (3, 4), (2, 9), range(12)])
def test_first_nan_wins_as_in_argmax(nan_classes: Any) -> None:
    logits = torch.randn(1, 12, 8, 8)
    logits[:, list(nan_classes), 2:5] = float("nan")
    logits[:, 6, 6] = float("inf")
    logits[:, 1, 7] = -float("inf")
    for classes_held in (1, 3, 4):
        labels = resized_argmax(logits, SIZES, max_bytes=bytes_of(classes_held))
        assert torch.equal(labels, whole(logits))


def test_memory_stays_within_the_bound() -> None:
    logits, sizes = torch.randn(1, 120, 12, 16), [(96, 128), (192, 256)]
    pixels, bound = sum(height * width for height, width in sizes), 4_000_000
    with LiveBytes() as pieces:
        resized_argmax(logits, sizes, max_bytes=bound)
    with LiveBytes() as everything:
        WholeInference()(lambda _: logits, torch.empty(1, 3, *sizes[0]), sizes[1]).argmax(1)
    # Beside the pieces, a few numbers per pixel of what is found so far.
    assert pieces.peak <= bound + 40 * pixels
    assert everything.peak >= 120 * 4 * pixels > 3 * pieces.peak


class LiveBytes(TorchDispatchMode):
    """Most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in inputs:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        if storage.data_ptr() in self._known:
            return
        self._known.add(storage.data_ptr())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage.data_ptr(), storage.nbytes())

    def _forget(self, pointer: int, size_bytes: int) -> None:
        self._known.discard(pointer)
        self.live -= size_bytes
