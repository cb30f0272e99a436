"""The measurement of validation runs both ways over the same images; how fast a machine is, no test can say."""

from vitrail.benchmark.validation import measure_validation
from vitrail.config import Recipe
from vitrail.data.shards import ShardReader


def test_both_ways_are_timed_and_count_the_same_pixels(recipe: Recipe, mixed_reader: ShardReader) -> None:
    figures = measure_validation(mixed_reader, recipe, repeats=1)
    assert (figures["images"], figures["batches"], figures["largest batch (images)"]) == (11, 5, 5)
    assert figures["in batches (images/s)"] > 0 and figures["one at a time (images/s)"] > 0
    assert figures["in batches / one at a time"] > 0
    assert figures["pixels counted otherwise, on ties"] <= 0.001 * figures["of pixels"]
