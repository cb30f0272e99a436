"""A manifest is complete, unchanged and of a known format, or it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitrail.data.manifest import Manifest
from vitrail.data.scenes import CLASSES
from vitrail.errors import DataError, UsageError


@pytest.fixture
def content(dataset: Path) -> Any:
    return json.loads((dataset / "manifest.json").read_text())


def _write(folder: Path, content: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_manifest_describes_the_data_set(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    assert (manifest.name, manifest.num_classes, manifest.classes) == ("scenes", 8, CLASSES)
    assert manifest.splits["training"].num_samples == 13
    assert manifest.reduce_zero_label


def test_folder_without_manifest_is_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no manifest.json, so it is not a data set; make one with"):
        Manifest.load(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Manifest.load(tmp_path / "nowhere")


def test_newer_format_is_refused_with_both_versions(tmp_path: Path, content: Any) -> None:
    content |= {"format_version": 3, "a field of the future": 1}
    with pytest.raises(DataError, match="has format version 3, and this vitrail reads up to 2"):
        Manifest.load(_write(tmp_path, content))


def test_older_format_is_refused_with_a_way_out(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match="format version 1, which this vitrail no longer reads; prepare"):
        Manifest.load(_write(tmp_path, content | {"format_version": 1}))


@pytest.mark.parametrize("path", ["../elsewhere.arrow", "/etc/passwd", "a/../../b.arrow", "..\\b.arrow", "C:b.arrow"])
def test_shard_outside_the_folder_is_refused(tmp_path: Path, content: Any, path: str) -> None:
    content["splits"]["training"]["shards"][0]["path"] = path
    with pytest.raises(DataError, match="leaves the data set's folder"):
        Manifest.load(_write(tmp_path, content))


def test_changed_manifest_is_refused(tmp_path: Path, content: Any) -> None:
    content["classes"][0] = "pebbles"
    with pytest.raises(DataError, match="was changed after it was written"):
        Manifest.load(_write(tmp_path, content))


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", '{"format_version": 1}', "[" * 100_000])
def test_broken_manifest_is_a_data_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_unknown_split_is_answered_with_the_known_ones(dataset: Path) -> None:
    with pytest.raises(UsageError, match="has no split 'test'; it has training, validation"):
        Manifest.load(dataset).split("test")
