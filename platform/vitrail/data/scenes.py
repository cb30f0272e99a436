"""Draws a small data set in ADEChallengeData2016's layout, for the demo and for tests.

    draw_scenes(Path("scenes"), train=400, val=80, size=128, seed=0)

Colour narrows a class down to the two or three that share its hue; texture tells two grounds and three materials
apart, outline three plain shapes. They hide one another, under uneven light and noise. Thin wires are unlabelled.
"""

import colorsys
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.data.codec import UInt8Array
from vitrail.data.files import make_writable
from vitrail.data.layout import distinct_colours

Field = NDArray[np.float64]

CLASSES = ("sand", "water", "stripes", "checks", "dots", "disc", "triangle", "star")
"""Names of the raw ids 1, 2, ...: two grounds, three materials of any outline, three plain shapes."""

HUES = {0.09: ("sand", "checks", "disc"), 0.33: ("dots", "star"), 0.60: ("water", "stripes", "triangle")}
"""Hue (a turn is 1) -> the classes that share it, so that none is told by its colour alone."""

_JPEG_QUALITY = 92
_OBJECTS = (4, 7)
_WIRES = 2
_HUE_OF = {name: hue for hue, names in HUES.items() for name in names}


def draw_scenes(folder: Path, *, train: int, val: int, size: int = 128, seed: int = 0) -> None:
    """Write `train` and `val` scenes of `size` x `size` pixels and their classes.csv; same arguments, same bytes."""
    rows: list[tuple[str, ...]] = [("index", "name", "red", "green", "blue")]
    for index, (name, colour) in enumerate(zip(CLASSES, distinct_colours(len(CLASSES)), strict=True), start=1):
        rows.append((str(index), name, *map(str, colour)))
    make_writable(folder)
    with (folder / "classes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for number, (split, count) in enumerate((("training", train), ("validation", val))):
        images, labels = folder / "images" / split, folder / "annotations" / split
        make_writable(images)
        make_writable(labels)
        for index in range(count):
            image, label = draw_scene(np.random.Generator(np.random.PCG64([seed, number, index])), size)
            options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
            (images / f"scene_{index:05d}.jpg").write_bytes(
                cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()
            )
            (labels / f"scene_{index:05d}.png").write_bytes(cv2.imencode(".png", label)[1].tobytes())


def draw_scene(rng: np.random.Generator, size: int) -> tuple[UInt8Array, UInt8Array]:
    """An RGB image (size, size, 3) and its raw ids (size, size), 0 where unlabelled."""
    canvas = _Canvas(rng, np.zeros((size, size, 3)), np.zeros((size, size), np.uint8))
    canvas.paint("sand", np.ones((size, size), bool), _speckle(rng, size))
    canvas.paint("water", _below_horizon(rng, size), _waves(rng, size))
    for _ in range(rng.integers(*_OBJECTS)):
        name = CLASSES[rng.integers(2, len(CLASSES))]
        outline = _OUTLINES.get(name) or _blob
        texture = _TEXTURES[name](rng, size) if name in _TEXTURES else np.zeros((size, size))
        canvas.paint(name, _fill(outline(rng), rng, size), texture)
    canvas.hang_wires()
    return canvas.exposed(), canvas.label


@dataclass
class _Canvas:
    rng: np.random.Generator
    image: Field
    label: UInt8Array

    def paint(self, name: str, where: NDArray[np.bool_], texture: Field) -> None:
        """Paint `where`, between two colours as `texture` in [0, 1] says."""
        first, second = _two_colours(self.rng, _HUE_OF[name])
        colours = first + texture[..., None] * (second - first)
        self.image[where] = colours[where]
        self.label[where] = CLASSES.index(name) + 1

    def hang_wires(self) -> None:
        """Thin unlabelled lines across the scene."""
        size = len(self.label)
        for _ in range(_WIRES):
            ends = self.rng.integers(0, size, (2, 2)).tolist()
            wire = cv2.line(np.zeros((size, size), np.uint8), ends[0], ends[1], 1, max(1, size // 64)) > 0
            self.image[wire] = self.rng.random() * 0.3
            self.label[wire] = 0

    def exposed(self) -> UInt8Array:
        """The image under light that falls off to one side, with noise."""
        size = len(self.label)
        x, _ = _turned(self.rng, size)
        light = 1 + 0.35 * self.rng.random() * (x / size - 0.5)
        noise = self.rng.normal(0, 0.03, self.image.shape)
        return np.clip((self.image * light[..., None] + noise) * 255, 0, 255).astype(np.uint8)


def _two_colours(rng: np.random.Generator, hue: float) -> tuple[Field, Field]:
    """Two colours (RGB in [0, 1]) around a hue that two or three classes share, one light and one dark."""
    light, dark = (
        np.array(colorsys.hsv_to_rgb((hue + rng.normal(0, 0.04)) % 1, rng.uniform(0.25, 0.85), value))
        for value in (rng.uniform(0.7, 1.0), rng.uniform(0.2, 0.5))
    )
    return (light, dark) if rng.random() < 0.5 else (dark, light)


def _turned(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Pixel coordinates (x, y) in axes turned by a random angle."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _period(rng: np.random.Generator, size: int) -> float:
    return float(rng.uniform(0.07, 0.11) * size)


def _stripes(rng: np.random.Generator, size: int) -> Field:
    x, _ = _turned(rng, size)
    return ((x / _period(rng, size)) % 1 < 0.5).astype(np.float64)


def _checks(rng: np.random.Generator, size: int) -> Field:
    x, y = _turned(rng, size)
    period = _period(rng, size)
    return (((x / period) % 1 < 0.5) ^ ((y / period) % 1 < 0.5)).astype(np.float64)


def _dots(rng: np.random.Generator, size: int) -> Field:
    x, y = _turned(rng, size)
    period = _period(rng, size)
    return (np.hypot((x / period) % 1 - 0.5, (y / period) % 1 - 0.5) < 0.3).astype(np.float64)


def _waves(rng: np.random.Generator, size: int) -> Field:
    y, x = np.mgrid[:size, :size].astype(np.float64)
    period = _period(rng, size)
    bend = 0.5 * np.sin(2 * np.pi * x / (2.5 * period) + rng.uniform(0, 6))
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * y / period + 2 * bend))


def _speckle(rng: np.random.Generator, size: int) -> Field:
    grain = rng.random((size // 2 + 1, size // 2 + 1))
    return np.repeat(np.repeat(grain, 2, axis=0), 2, axis=1)[:size, :size]


def _below_horizon(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size].astype(np.float64)
    shore = rng.uniform(0.2, 0.8) + 0.06 * np.sin(2 * np.pi * x / size * rng.uniform(1, 2) + rng.uniform(0, 6))
    below = y / size > shore
    return np.asarray(below if rng.random() < 0.5 else ~below)


def _blob(rng: np.random.Generator) -> Field:
    """Corners (n, 2) around the origin, at most 1 away: any outline, so that only the material tells the class."""
    if rng.random() < 0.5:
        return _disc(rng) * rng.uniform(0.6, 1.0, 2)
    corners = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners > 4 else np.arange(corners) * 2 * np.pi / corners
    return _polar(angles, rng.uniform(0.7, 1.0, corners))


def _disc(rng: np.random.Generator) -> Field:
    return _polar(np.linspace(0, 2 * np.pi, 48, endpoint=False), np.full(48, 1.0))


def _triangle(rng: np.random.Generator) -> Field:
    return _polar(np.arange(3) * 2 * np.pi / 3, rng.uniform(0.9, 1.1, 3))


def _star(rng: np.random.Generator) -> Field:
    return _polar(np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.1))


def _polar(angles: Field, radii: Field) -> Field:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _fill(corners: Field, rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """The outline, turned, scaled and moved to a random place, as a mask."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.34) * size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = corners @ turn * radius + rng.uniform(0.08, 0.92, 2) * size
    mask = np.zeros((size, size), np.uint8)
    return np.asarray(cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1) > 0)


_TEXTURES: dict[str, Callable[[np.random.Generator, int], Field]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
}
_OUTLINES: dict[str, Callable[[np.random.Generator], Field]] = {"disc": _disc, "triangle": _triangle, "star": _star}
