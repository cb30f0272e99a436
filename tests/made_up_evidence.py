"""Evidence of models that do not exist: counts drawn at random, with as much skill as asked for."""

from dataclasses import replace

import numpy as np

from vitrail.evaluation.image_counts import ImageCounts
from vitrail.gate.evidence import Evidence, JudgedOn, Lineage, PredictionCost

CLASSES = ("sky", "building", "car", "pole")
LINEAGE = Lineage(
    recipe="upernet_deit-s16",
    recipe_digest="d" * 16,
    data_fingerprint="f" * 32,
    code="abc123",
    start="random weights",
    weights_sha256="a" * 64,
)
COST = PredictionCost(images_per_s=10.0, peak_memory_gib=1.0, device="a CPU")


def scenes(images: int = 40, *, seed: int = 0) -> np.ndarray:
    """(N, K) labelled pixels of scenes of 10,000 pixels in which some classes are missing."""
    random = np.random.default_rng(seed)
    shares = random.gamma(0.7, 1, (images, len(CLASSES))) * (random.random((images, len(CLASSES))) < 0.8)
    shares[:, 0] += 0.1
    return np.floor(10_000 * shares / shares.sum(1, keepdims=True)).astype(np.int64)


def judged(labelled: np.ndarray, *, skill: float | np.ndarray = 1.0, seed: int = 0, noise: float = 0.5) -> ImageCounts:
    """What a model finds in the scenes: of each class a share that grows with `skill` and varies with the image."""
    random = np.random.default_rng(seed)
    found = np.floor(labelled / (1 + np.exp(-skill - noise * random.normal(size=labelled.shape)))).astype(np.int64)
    missed = (labelled - found).sum(1)
    wrong = np.stack([random.multinomial(count, [1 / labelled.shape[1]] * labelled.shape[1]) for count in missed])
    ids = tuple(f"image {index}" for index in range(len(labelled)))
    return ImageCounts(ids=ids, intersection=found, predicted=found + wrong, labelled=labelled)


def evidence(counts: ImageCounts | None, *, version: int = 2, **changes: object) -> Evidence:
    """A version with a complete lineage, but for `changes` to it or to its cost."""
    name, cost = str(changes.pop("name", "streets")), changes.pop("cost", COST)
    return Evidence(name=name, version=version, lineage=replace(LINEAGE, **changes), counts=counts, cost=cost)


def judged_on(images: int = 40, fingerprint: str = "f" * 32) -> JudgedOn:
    return JudgedOn(name="streets", fingerprint=fingerprint, images=images, classes=CLASSES)
