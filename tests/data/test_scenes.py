"""Drawn scenes: repeatable, complete, and not to be told apart by colour alone."""

from pathlib import Path

import cv2
import numpy as np

from vitrail.data.layout import read_layout
from vitrail.data.scenes import CLASSES, HUES, draw_scene, draw_scenes


def test_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_scenes(tmp_path / name, train=2, val=1, size=40, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 7
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a" / files[-1]).read_bytes() != (tmp_path / "c" / files[-1]).read_bytes()


def test_every_class_is_seen_and_some_pixels_are_unlabelled(scenes: Path) -> None:
    layout = read_layout(scenes)
    labels = [cv2.imread(str(scenes / pair.label), cv2.IMREAD_UNCHANGED) for pair in layout.splits["training"]]
    counts = np.bincount(np.concatenate([label.reshape(-1) for label in labels]), minlength=9)
    assert len(counts) == len(CLASSES) + 1 and (counts > 0).all()


def test_mean_colour_does_not_tell_a_class_from_those_of_its_hue() -> None:
    samples: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for seed in range(150):
        image, label = draw_scene(np.random.default_rng(seed), 48)
        for number in np.unique(label[label > 0]):
            samples[CLASSES[number - 1]].append(image[label == number].mean(axis=0))
    assert sorted(name for names in HUES.values() for name in names) == sorted(CLASSES)
    for names in HUES.values():
        assert len(names) > 1
        means = np.array([np.mean(samples[name], axis=0) for name in names])
        spread = np.array([np.std(samples[name], axis=0) for name in names])
        assert np.ptp(means, axis=0).max() < spread.min() * 1.5
