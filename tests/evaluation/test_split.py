"""Batched evaluation against one image at a time, and what it does to memory, threads and damaged samples."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.config import Recipe
from vitrail.data.shards import DamagedShardError, EncodedSample, ShardReader
from vitrail.errors import DataError
from vitrail.evaluation.dealing import MAX_BATCH_PIXELS, ImageBatch, deal_batches
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.predictor import Predictor, evaluate
from vitrail.evaluation.split import DecodedImage, decode_ahead, evaluate_split, predict_batches
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override

CLASSES = 8
# float32 kernels for other batch sizes add in another order; nothing else may tell two predictions apart.
CLEAR = 1e-4
MODES = {
    "whole": [],
    "slide": ["inference.kind=slide", "inference.crop_size=32", "inference.stride=20"],
    "ms_flip": [],
    "ms_flip of 1.x": ["ms_flip.relative_to=image"],
}


@pytest.fixture(params=MODES)
def predictor(request: pytest.FixtureRequest, model: Segmentor, recipe: Recipe) -> Predictor:
    mode = request.param
    return Predictor(model, override(recipe, MODES[mode]), ms_flip=mode.startswith("ms_flip"))


def test_batches_predict_what_single_images_do(predictor: Predictor, mixed_reader: ShardReader) -> None:
    (batches,) = deal_batches(mixed_reader.sizes, predictor.view_sizes, world_size=1, max_images=predictor.max_images)
    assert max(len(batch.indices) for batch in batches) == (predictor.max_images or 5)
    batched, single = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    unclear_pixels, seen = 0, set()
    with closing(predict_batches(predictor, mixed_reader, batches, threads=2)) as results:
        for result in results:
            sample = mixed_reader[result.index]
            assert torch.equal(result.label, torch.tensor(sample.label))
            scores = predictor.scores(sample.image)
            best = scores.topk(2, dim=0).values
            unclear = best[0] - best[1] < CLEAR
            unclear_pixels += int(unclear.sum())
            label = torch.tensor(sample.label).masked_fill(unclear, 255)
            batched.update(result.prediction, label)
            single.update(scores.argmax(0), label)
            seen.add(result.index)
    assert seen == set(range(len(mixed_reader)))
    assert torch.equal(batched.counts, single.counts)
    assert (single.counts.sum(0) > 0).sum() >= 4  # a model of one opinion would agree with anything
    pixels = sum(height * width for height, width in mixed_reader.sizes)
    assert unclear_pixels < 0.001 * pixels, unclear_pixels


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_ranks_together_count_what_a_plain_loop_counts(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader, world_size: int
) -> None:
    predictor = Predictor(model, recipe)
    samples = (mixed_reader[index] for index in range(len(mixed_reader)))
    plain = evaluate(predictor, ((sample.image, sample.label) for sample in samples), CLASSES)
    parts = [
        evaluate_split(predictor, mixed_reader, CLASSES, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    counts = sum(part.matrix.counts for part in parts)
    assert sum(part.images for part in parts) == plain.images == len(mixed_reader)
    assert torch.equal(counts.sum(1), plain.matrix.counts.sum(1))
    # A pixel that is predicted otherwise, on a tie, leaves one cell for another.
    assert (counts - plain.matrix.counts).abs().sum() <= 2 * 3


def test_evaluation_leaves_a_training_model_as_it_was(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader
) -> None:
    model.train()
    evaluation = evaluate_split(Predictor(model, recipe), mixed_reader, CLASSES)
    assert model.training
    model.eval()
    again = evaluate_split(Predictor(model, recipe), mixed_reader, CLASSES)
    assert torch.equal(evaluation.matrix.counts, again.matrix.counts)
    evaluation.matrix.counts += 1  # a tensor like any other, though it was counted in inference mode


@pytest.mark.parametrize("ms_flip", [False, True])
def test_nothing_waits_for_the_device(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader, ms_flip: bool
) -> None:
    # A tensor on "meta" has no values: whoever reads one, as .item(), .cpu() and bincount do, fails.
    predictor = Predictor(Segmentor(recipe.model).to("meta"), recipe, "meta", ms_flip=ms_flip)
    matrix = ConfusionMatrix(CLASSES, device="meta")
    (batches,) = deal_batches(mixed_reader.sizes, predictor.view_sizes, world_size=1, max_images=predictor.max_images)
    with closing(predict_batches(predictor, mixed_reader, batches)) as results:
        shapes = {}
        for result in results:
            matrix.update(result.prediction, result.label)
            shapes[result.index] = tuple(result.prediction.shape)
    assert [shapes[index] for index in range(len(mixed_reader))] == list(mixed_reader.sizes)
    with pytest.raises((RuntimeError, NotImplementedError)):
        matrix.check()


def test_autocast_is_around_the_network_alone(model: Segmentor, recipe: Recipe, mixed_reader: ShardReader) -> None:
    plain = Predictor(model, recipe)
    half = Predictor(model, recipe, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    image = mixed_reader[0].image
    scores = half.scores(image)
    assert scores.dtype == torch.float32
    assert 0 < (scores - plain.scores(image)).abs().max() < 0.1 * scores.abs().max()
    assert evaluate_split(half, mixed_reader, CLASSES).images == len(mixed_reader)


def test_some_batches_are_decoded_ahead_and_no_more() -> None:
    batches = [ImageBatch(indices=(2 * n, 2 * n + 1), pixels=MAX_BATCH_PIXELS) for n in range(8)]
    loaded: list[int] = []

    def load(index: int) -> DecodedImage:
        loaded.append(index)
        return DecodedImage(views=[], label=np.full((1, 1), index, np.uint8))

    with ThreadPoolExecutor(1) as pool:
        for number, (batch, images) in enumerate(decode_ahead(pool, load, batches)):
            pool.submit(int).result()  # one thread: all that was given to it before is done
            assert batch is batches[number]
            assert [image.label.item() for image in images] == list(batch.indices)
            assert len(loaded) == min(2 * (number + 3), 16)


def test_a_batch_larger_than_the_bound_still_has_one_ahead() -> None:
    batches = [ImageBatch(indices=(n,), pixels=10 * MAX_BATCH_PIXELS) for n in range(4)]
    with ThreadPoolExecutor(1) as pool:
        loaded: list[int] = []
        stream = decode_ahead(
            pool, lambda n: loaded.append(n) or DecodedImage(views=[], label=np.zeros((1, 1))), batches
        )
        next(stream)
        pool.submit(int).result()
        assert loaded == [0, 1]


def test_predictions_that_are_no_class_are_refused_at_the_end(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader
) -> None:
    with pytest.raises(ValueError, match=r"predictions are outside the classes 0\.\.3"):
        evaluate_split(Predictor(model, recipe), mixed_reader, 4)


def test_closing_before_the_end_ends_the_threads(model: Segmentor, recipe: Recipe, mixed_reader: ShardReader) -> None:
    predictor = Predictor(model, recipe)
    (batches,) = deal_batches(mixed_reader.sizes, predictor.view_sizes, world_size=1)
    results = predict_batches(predictor, mixed_reader, batches, threads=2)
    next(results)
    assert decoding_threads()
    results.close()
    assert not decoding_threads()


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


class Spoilt(ShardReader):
    """Hands out the image of sample 3, or nonsense, in place of sample 6's, as a faulty writer might."""

    other: EncodedSample | None = None

    def encoded(self, index: int) -> EncodedSample:
        sample = super().encoded(index)
        return replace(sample, image=self.other.image if self.other else b"no image") if index == 6 else sample


def test_sample_that_is_no_image_is_named(model: Segmentor, recipe: Recipe, mixed_reader: ShardReader) -> None:
    with pytest.raises(DataError, match=r"sample '06' of .*, split 'validation', cannot be decoded.*prepare"):
        evaluate_split(Predictor(model, recipe), Spoilt(mixed_reader.folder, "validation"), CLASSES, threads=2)
    assert not decoding_threads()


def test_sample_of_another_size_than_recorded_is_named(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader
) -> None:
    reader = Spoilt(mixed_reader.folder, "validation")
    reader.other = mixed_reader.encoded(3)
    with pytest.raises(DataError, match=r"sample '06' of .* has 72 x 48 pixels in place of 40 x 130"):
        evaluate_split(Predictor(model, recipe), reader, CLASSES)


def test_damaged_sample_is_named_and_the_threads_end(
    model: Segmentor, recipe: Recipe, mixed_reader: ShardReader, tmp_path: Path
) -> None:
    assert mixed_reader.folder.local is not None
    shutil.copytree(mixed_reader.folder.local, tmp_path / "data")
    image = bytes(memoryview(mixed_reader.encoded(9).image))
    (shard,) = [path for path in (tmp_path / "data").glob("validation-*.arrow") if image in path.read_bytes()]
    spoilt = bytearray(image)
    spoilt[len(image) // 2] ^= 1
    # Samples 2 and 9 have the same size but not the same pixels, so only one place is changed.
    shard.write_bytes(shard.read_bytes().replace(image, bytes(spoilt)))
    reader = ShardReader(tmp_path / "data", "validation")
    with pytest.raises(DamagedShardError, match=rf"{shard.name} is damaged: sample '09' fails its checksum"):
        evaluate_split(Predictor(model, recipe), reader, CLASSES, threads=3)
    assert not decoding_threads()
