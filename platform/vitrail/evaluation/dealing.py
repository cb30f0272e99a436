"""Decides which images a worker evaluates, and which of them together: a pure function of the images' sizes.

batches = deal_batches(reader.sizes, predictor.view_sizes, world_size=8)[rank]
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitrail.data.geometry import Size

MAX_BATCH_PIXELS = 3 * 2**20
"""Of a batch, as the network sees it: eight of ADE20K's median size at test, 512 x 683."""


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images that the network sees at one size, so that none is padded."""

    indices: tuple[int, ...]
    pixels: int
    """Of all of them together, as the network sees them."""


def deal_batches(
    sizes: Sequence[Size],
    view_sizes: Callable[[Size], Sequence[Size]],
    *,
    world_size: int,
    max_pixels: int = MAX_BATCH_PIXELS,
    max_images: int | None = None,
) -> list[list[ImageBatch]]:
    """Every rank's batches, the largest first; each image is in exactly one, whatever the `world_size`.

    The ranks' loads, in pixels seen by the network and pixels decoded, differ from an equal share by no more than one
    image. All together they have at most `world_size - 1` batches more than a single rank would.

    Args:
        sizes: (height, width) of each image.
        view_sizes: the sizes at which the network sees an image; only images that agree in all share a batch.
        max_pixels: of a batch, as the network sees it; a larger image has one for itself.
    """
    views = [tuple(view_sizes(size)) for size in sizes]
    grouping = _Grouping(views, max_pixels, max_images or len(sizes))
    full = grouping.batches(range(len(sizes)))
    # Dealt to and fro, the hands are almost equal, with alike many large and small batches in each. Laid in a row and
    # cut into shares that are equal, few batches are taken apart.
    turn = 2 * world_size
    hands = [[*full[rank::turn], *full[turn - 1 - rank :: turn]] for rank in range(world_size)]
    row = [index for hand in hands for batch in hand for index in batch.indices]
    costs = [_area(size) + sum(map(_area, seen)) for size, seen in zip(sizes, views, strict=True)]
    return [grouping.batches(share) for share in _equal_shares(row, costs, world_size)]


@dataclass(frozen=True)
class _Grouping:
    """Makes the fewest batches of some images."""

    views: Sequence[tuple[Size, ...]]
    max_pixels: int
    max_images: int

    def batches(self, indices: Iterable[int]) -> list[ImageBatch]:
        groups: defaultdict[tuple[Size, ...], list[int]] = defaultdict(list)
        for index in sorted(indices):
            groups[self.views[index]].append(index)
        batches = [batch for views, group in groups.items() for batch in self._cut(views, group)]
        return sorted(batches, key=lambda batch: -batch.pixels)

    def _cut(self, views: tuple[Size, ...], group: list[int]) -> Iterable[ImageBatch]:
        pixels = sum(map(_area, views))
        count = max(1, min(self.max_pixels // pixels, self.max_images))
        for start in range(0, len(group), count):
            part = tuple(group[start : start + count])
            yield ImageBatch(indices=part, pixels=len(part) * pixels)


def _equal_shares(row: Sequence[int], costs: Sequence[int], count: int) -> list[list[int]]:
    """Cut a row of images into `count` parts of equal cost; an image goes where its middle lies."""
    total, before = sum(costs), 0
    shares: list[list[int]] = [[] for _ in range(count)]
    for index in row:
        shares[(2 * before + costs[index]) * count // (2 * total)].append(index)
        before += costs[index]
    return shares


def _area(size: Size) -> int:
    return size[0] * size[1]
