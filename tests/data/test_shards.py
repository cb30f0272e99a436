"""Shards hold the source's own image bytes and train ids, the same bytes each time, and damage is never silent."""

import hashlib
import pickle
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vitrail.data.layout import read_layout
from vitrail.data.manifest import Manifest
from vitrail.data.shard_writer import plan_shards, write_shard
from vitrail.data.shards import DamagedShardError, ShardReader


def test_reader_returns_pixels_and_train_ids_of_the_source(scenes: Path, dataset: Path) -> None:
    reader = ShardReader(dataset, "training")
    assert len(Manifest.load(dataset).splits["training"].shards) > 1
    assert reader.ids == tuple(f"scene_{n:05d}" for n in range(13))
    for index in (12, 0, 7):
        sample = reader[index]
        image = cv2.imread(str(scenes / f"images/training/{sample.id}.jpg"), cv2.IMREAD_COLOR)
        raw = cv2.imread(str(scenes / f"annotations/training/{sample.id}.png"), cv2.IMREAD_UNCHANGED)
        assert sample.id == reader.ids[index]
        np.testing.assert_array_equal(sample.image, image[..., ::-1])
        np.testing.assert_array_equal(sample.label, np.where(raw == 0, 255, raw.astype(int) - 1))
        assert reader.sizes[index] == sample.label.shape


def test_reader_refuses_indices_outside_and_survives_pickling(dataset: Path) -> None:
    reader = ShardReader(dataset, "validation")
    with pytest.raises(IndexError, match="sample 3 of 3"):
        reader[3]
    with pytest.raises(IndexError):
        reader[-1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[2].image, reader[2].image)


def test_manifest_counts_pixels(scenes: Path, dataset: Path) -> None:
    raw = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (scenes / "annotations/validation").iterdir()]
    counts = np.bincount(np.concatenate([label.reshape(-1) for label in raw]), minlength=9)
    split = Manifest.load(dataset).splits["validation"]
    assert (split.ignored_pixels, *split.class_pixels) == tuple(counts.tolist())


def test_same_input_gives_the_same_bytes(scenes: Path, dataset: Path, tmp_path: Path, write_dataset: Any) -> None:
    again = write_dataset(scenes, tmp_path / "again")
    assert again.fingerprint == Manifest.load(dataset).fingerprint
    for shard in again.splits["training"].shards:
        data = (dataset / shard.path).read_bytes()
        assert (tmp_path / "again" / shard.path).read_bytes() == data
        assert hashlib.sha256(data).hexdigest() == shard.sha256


def test_shards_are_cut_at_the_target_size(scenes: Path) -> None:
    layout = read_layout(scenes)
    plans = plan_shards(layout, shard_size_bytes=20_000)
    training = [plan for plan in plans if plan.split == "training"]
    sizes = [sum(pair.size_bytes for pair in plan.pairs) for plan in training]
    assert max(sizes) <= 20_000
    assert [pair for plan in training for pair in plan.pairs] == list(layout.splits["training"])
    assert len(plan_shards(layout, shard_size_bytes=1)) == 16


def test_finished_shard_is_kept_and_a_spoilt_one_is_written_again(scenes: Path, tmp_path: Path) -> None:
    plan = plan_shards(read_layout(scenes), shard_size_bytes=1 << 30)[1]
    report = write_shard(plan, source=scenes, folder=tmp_path)
    shard = tmp_path / "validation-00000.arrow"
    written = shard.read_bytes()
    # Without its source a shard could not be written again: this run can only have kept it.
    assert write_shard(plan, source=tmp_path / "gone", folder=tmp_path) == report
    shard.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    assert write_shard(plan, source=scenes, folder=tmp_path) == report
    assert shard.read_bytes() == written


def test_missing_or_shortened_shard_is_named(scenes: Path, tmp_path: Path, write_dataset: Any) -> None:
    shard = tmp_path / write_dataset(scenes, tmp_path).splits["validation"].shards[0].path
    data = shard.read_bytes()
    shard.write_bytes(data[:-8])
    with pytest.raises(DamagedShardError, match=rf"{shard.name} is damaged: it has [\d,]+ bytes in place of"):
        ShardReader(tmp_path, "validation")[0]
    shard.unlink()
    with pytest.raises(DamagedShardError, match=r"does not exist; run pipelines/prepare\.py again"):
        ShardReader(tmp_path, "validation")[0]


def test_random_corruption_gives_right_pixels_or_an_error(scenes: Path, tmp_path: Path, write_dataset: Any) -> None:
    manifest = write_dataset(scenes, tmp_path, shard_size_bytes=1 << 30)
    path = tmp_path / manifest.splits["validation"].shards[0].path
    data, rng, refused = path.read_bytes(), random.Random(3), 0
    want = [(s.image, s.label) for s in map(ShardReader(tmp_path, "validation").__getitem__, range(3))]
    for _ in range(300):
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 1, 20))):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        reader = ShardReader(tmp_path, "validation")
        for index, (image, label) in enumerate(want):
            try:
                sample = reader[index]
            except DamagedShardError:
                refused += 1
                continue
            assert np.array_equal(sample.image, image) and np.array_equal(sample.label, label)
    assert refused >= 300
