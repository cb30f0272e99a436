"""The folder of golden files: where it is, and the rules by which its weights and inputs are made.

`VITRAIL_REFERENCE` names the folder (relative to the repository root; default `../shared/reference`), whose README
states the rules and whose `rules.json` varies them. Nothing here is about a particular file.
"""

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / os.environ.get("VITRAIL_REFERENCE", "../shared/reference")

ARCHES = (
    "vit_b_mln",
    "vit_b_ln_mln",
    "deit_s",
    "deit_s_mln",
    "deit_s_ln_mln",
    "deit_b",
    "deit_b_mln",
    "deit_b_ln_mln",
)
"""In the order that the seeds count them."""


@dataclass(frozen=True)
class Golden:
    """A golden file about one architecture, as its name tells: `KIND[_nopatchbias]_ARCH[_SIZE].npz`."""

    path: Path
    arch: str
    patch_bias: bool
    size: int | None
    """Of the input, where the name states one."""

    @property
    def index(self) -> int:
        """Of the architecture, for seeds."""
        return ARCHES.index(self.arch)

    @classmethod
    def parse(cls, path: Path) -> "Golden":
        """Read the name of a file; the longest architecture that fits is meant."""
        arches = "|".join(sorted(ARCHES, key=len, reverse=True))
        found = re.search(rf"_(nopatchbias_)?({arches})(?:_(?:size)?(\d+)(?:x\d+)?)?$", path.stem)
        assert found, f"{path.name} names no known architecture ({', '.join(ARCHES)})"
        return cls(path, found[2], not found[1], int(found[3]) if found[3] else None)


def files(pattern: str) -> list[Any]:
    """Files of the folder that match, as parameters of a test; one skipped parameter, with the reason, if none do."""
    found = sorted(FOLDER.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    where = f"no {pattern} in {FOLDER}" if FOLDER.is_dir() else f"no folder {FOLDER} (VITRAIL_REFERENCE)"
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=where))]


@dataclass(frozen=True)
class Rules:
    """The weight rule and the inputs of a folder. Seeds are given as the README states them, without the offset."""

    weight_key_suffix: str
    seed_offset: int

    @classmethod
    def load(cls) -> "Rules":
        return cls(**json.loads((FOLDER / "rules.json").read_text()))

    def rng(self, seed: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(seed + self.seed_offset))

    def weight(self, key: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The value of a state-dict entry, by its name in mmsegmentation: float32, or int64 0 for a counter."""
        crc = zlib.crc32((key + self.weight_key_suffix).encode())
        u = np.random.Generator(np.random.PCG64(crc)).random(shape)
        s = 2 * u - 1
        if key.endswith("num_batches_tracked"):
            return np.zeros(shape, np.int64)
        if key.endswith("running_mean"):
            value = 0.1 * s
        elif key.endswith("running_var"):
            value = 0.5 + u
        elif key.endswith(("pos_embed", "cls_token")):
            value = 0.5 * s
        elif len(shape) >= 2:
            value = s * np.sqrt(3 / np.prod(shape[1:]))
        elif key.endswith(".weight"):
            value = 1 + 0.1 * s
        else:
            value = 0.1 * s
        return np.asarray(value, np.float32)

    def rand_input(self, seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Normalised network input, RGB, uniform in [-2, 2)."""
        return (self.rng(seed).random(shape) * 4 - 2).astype(np.float32)

    def rand_labels(
        self, seed: int, batch: int, height: int, width: int, *, cell: int = 16, classes: int = 150
    ) -> NDArray[np.int64]:
        """Cells of one label each, a tenth of the pixels and the last rows ignored."""
        g = self.rng(seed)
        small = np.floor(g.random((batch, -(-height // cell), -(-width // cell))) * classes).astype(np.int64)
        labels = small.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
        labels[g.random((batch, height, width)) < 0.1] = 255
        labels[:, height - height // 16 :] = 255
        return labels

    def smooth_image(
        self, seed: int, height: int, width: int, *, grid: tuple[int, int] = (9, 12), noise: float = 16
    ) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) in the order B, G, R."""
        g = self.rng(seed)
        value = _upsample(g.random((*grid, 3)), height, width) * 255
        value = value + (g.random((height, width, 3)) - 0.5) * noise
        return np.clip(np.floor(value + 0.5), 0, 255).astype(np.uint8)

    def smooth_mask(
        self, seed: int, height: int, width: int, *, classes: int = 150, grid: tuple[int, int] = (9, 12)
    ) -> NDArray[np.uint8]:
        """uint8 (H, W) of raw ADE labels, 0 = other."""
        value = _upsample(self.rng(seed).random(grid), height, width)
        return np.minimum(np.floor(value * (classes + 1)), classes).astype(np.uint8)

    def stated_image(self, seed: int, height: int, width: int, crc: int, *, noise: float = 16) -> NDArray[np.uint8]:
        """The image of a seed that a golden states itself, with or without the folder's offset: the CRC tells which."""
        for candidate in (seed, seed - self.seed_offset):
            if candidate + self.seed_offset >= 0:
                image = self.smooth_image(candidate, height, width, noise=noise)
                if crc32(image) == crc:
                    return image
        raise AssertionError(f"no image of seed {seed} (offset {self.seed_offset}) has CRC32 {crc}")


def crc32(array: NDArray[Any]) -> int:
    """Of the bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def stats(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean, standard deviation (n - 1), max |x| and sum |x| of the whole tensor, in float64."""
    x = np.asarray(values, np.float64)
    return np.array([x.mean(), x.std(ddof=1), np.abs(x).max(), np.abs(x).sum()])


def _upsample(low: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear, corners aligned; along W first, then H, which decides the last bit."""
    return _stretch(_stretch(low, width, axis=1), height, axis=0)


def _stretch(low: NDArray[np.float64], length: int, *, axis: int) -> NDArray[np.float64]:
    n = low.shape[axis]
    t = np.arange(length) * (n - 1) / (length - 1)
    i = np.minimum(np.floor(t).astype(int), n - 2)
    f = (t - i).reshape([-1 if a == axis else 1 for a in range(low.ndim)])
    return low.take(i, axis) * (1 - f) + low.take(i + 1, axis) * f
