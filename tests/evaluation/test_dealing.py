"""Every image once, equal loads, and as few batches as the shapes allow, over real and made-up collections."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vitrail.data.geometry import Size, scaled_size
from vitrail.evaluation.dealing import ImageBatch, deal_batches

Dealt = list[list[ImageBatch]]
WORLD_SIZES = (1, 2, 3, 4, 5)


def seen(size: Size) -> list[Size]:
    return [scaled_size(size, (2048, 512))]


def area(size: Size) -> int:
    return size[0] * size[1]


def load(rank: list[ImageBatch], sizes: list[Size]) -> int:
    return sum(area(sizes[index]) + area(*seen(sizes[index])) for batch in rank for index in batch.indices)


def fewest(sizes: list[Size], max_pixels: int) -> int:
    """Batches that one rank needs: each shape's images in as few as hold them."""
    shapes = [seen(size)[0] for size in sizes]
    return sum(-(-shapes.count(shape) // max(1, max_pixels // area(shape))) for shape in set(shapes))


@pytest.fixture(params=["photographs", "one shape", "no two alike", "two images", "none"])
def sizes(request: pytest.FixtureRequest) -> list[Size]:
    rng = np.random.default_rng(0)
    if request.param == "photographs":
        common = [(512, 683), (683, 512), (512, 512), (768, 1024), (384, 512)]
        rare = [(int(a), int(b)) for a, b in rng.integers(256, 1600, (40, 2))]
        return [common[k] for k in rng.integers(0, len(common), 160)] + rare
    if request.param == "one shape":
        return [(360, 480)] * 101
    if request.param == "no two alike":
        return [(400 + 7 * n, 600) for n in range(37)]
    return [(300, 400)] * (2 if request.param == "two images" else 0)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_image_is_dealt_once_in_batches_of_one_shape(sizes: list[Size], world_size: int) -> None:
    dealt = deal_batches(sizes, seen, world_size=world_size, max_pixels=2_000_000)
    assert len(dealt) == world_size
    batches = [batch for rank in dealt for batch in rank]
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(sizes)))
    for batch in batches:
        (shape,) = {seen(sizes[index])[0] for index in batch.indices}
        assert batch.pixels == len(batch.indices) * area(shape)
        assert batch.pixels <= 2_000_000 or len(batch.indices) == 1


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_loads_differ_from_an_equal_share_by_one_image_at_most(sizes: list[Size], world_size: int) -> None:
    dealt = deal_batches(sizes, seen, world_size=world_size)
    loads = [load(rank, sizes) for rank in dealt]
    largest = max((area(size) + area(*seen(size)) for size in sizes), default=0)
    assert all(abs(each - sum(loads) / world_size) <= largest for each in loads)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_batches_are_as_full_as_shapes_and_ranks_allow(sizes: list[Size], world_size: int) -> None:
    dealt = deal_batches(sizes, seen, world_size=world_size, max_pixels=2_000_000)
    count = sum(map(len, dealt))
    assert fewest(sizes, 2_000_000) <= count <= fewest(sizes, 2_000_000) + world_size - 1
    for rank in dealt:  # on each rank all batches of a shape but one are full
        assert len(rank) == fewest([sizes[index] for batch in rank for index in batch.indices], 2_000_000)
        assert [batch.pixels for batch in rank] == sorted((batch.pixels for batch in rank), reverse=True)


def test_each_rank_has_its_part_of_the_small_batches() -> None:
    sizes = [(512, 683)] * 400 + [(512, 520 + n) for n in range(100)]
    dealt = deal_batches(sizes, seen, world_size=4)
    alone = [sum(len(batch.indices) == 1 for batch in rank) for rank in dealt]
    assert sum(alone) >= 99 and max(alone) <= 2 * min(alone)


def test_real_sizes_are_dealt_evenly() -> None:
    path = Path(__file__).parents[3] / "shared/data/ade20k_sizes.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    sizes = [(int(row["height"]), int(row["width"])) for row in rows]
    for world_size in (1, 8):
        dealt = deal_batches(sizes, seen, world_size=world_size)
        loads = [load(rank, sizes) for rank in dealt]
        assert max(loads) < 1.01 * sum(loads) / world_size
        assert sum(map(len, dealt)) < len(sizes) / 4


def test_views_must_all_agree_to_share_a_batch() -> None:
    views = {(100, 200): [(50, 100), (75, 150)], (101, 200): [(50, 100), (76, 150)]}
    sizes = [(100, 200), (101, 200), (100, 200)]
    (batches,) = deal_batches(sizes, views.__getitem__, world_size=1)
    assert {batch.indices: batch.pixels for batch in batches} == {(0, 2): 32_500, (1,): 16_400}
    (single,) = deal_batches(sizes, views.__getitem__, world_size=1, max_images=1)
    assert sorted(batch.indices for batch in single) == [(0,), (1,), (2,)]
