"""Finds images that occur more than once: the same pixels, or pictures that look alike.

Alike: difference hashes at most 4 of 64 bits apart, and 16x16 grey versions that correlate. Exact copies are taken
together first, so what is searched for look-alikes are different pictures.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.data.doctor.findings import Finding, SampleRef
from vitrail.data.doctor.inspection import Record

Indices = NDArray[np.int64]

MAX_DISTANCE = 4
_MIN_CORRELATION = 0.95  # by hash alone, two scenes with the same layout of light and dark are taken for one
_ROWS_AT_ONCE = 512
_FAR = np.iinfo(np.int64).max
_PAIRS_AT_ONCE = 50_000
_NAMED = 4
_LISTED = 100


def find_duplicates(records: Sequence[Record]) -> list[Finding]:
    """Findings of the kinds leak, contradiction, duplicate, near_leak and near_duplicate."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.pixel_hash:
            groups[record.pixel_hash].append(record)
    found = [finding for group in groups.values() if len(group) > 1 for finding in _exact(group)]
    return found + _near([group[0] for group in groups.values()])


def near_pairs(hashes: NDArray[np.uint64], max_distance: int = MAX_DISTANCE) -> Iterator[NDArray[np.int64]]:
    """Rows (i, j, distance), i < j, of all hashes at most `max_distance` bits apart; block by block.

    22,000 hashes take about a second.
    """
    # With bits as -1 and 1, a product of matrices counts equal minus different bits: BLAS beats popcount.
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        equal = bits[start : start + _ROWS_AT_ONCE] @ bits[start:].T
        rows, columns = np.nonzero(equal >= 64 - 2 * max_distance)
        above = columns > rows
        rows, columns = rows[above], columns[above]
        distance = ((64 - equal[rows, columns]) / 2).astype(np.int64)
        yield np.stack([rows + start, columns + start, distance], axis=1)


def _exact(group: list[Record]) -> Iterator[Finding]:
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in group:
        by_split[record.ref.split].append(record)
    if len(by_split) > 1:
        yield _finding("leak", group, "is also")
    for members in by_split.values():
        if len(members) > 1:
            yield _finding("duplicate", members, "is also")
    if len({record.label_hash for record in group if record.label_hash}) > 1:
        yield _finding("contradiction", group, "has another mask as")


def _near(records: list[Record]) -> list[Finding]:
    """Look-alikes among records of different pictures: by groups within a split, by the closest between splits."""
    hashed = [record for record in records if record.dhash is not None]
    if not hashed:
        return []
    training = np.array([record.ref.split == "training" for record in hashed])
    _, split = np.unique([record.ref.split for record in hashed], return_inverse=True)
    groups, closest = _Groups(len(hashed)), np.full(len(hashed), _FAR, np.int64)
    for i, j, distance in _alike(hashed):
        same = split[i] == split[j]
        groups.join(i[same], j[same])
        i, j, distance = i[~same], j[~same], distance[~same]
        outer, inner = np.where(training[i], j, i), np.where(training[i], i, j)  # it is validation that suffers
        np.minimum.at(closest, outer, distance * len(hashed) + inner)
    found = []
    for number in np.flatnonzero(closest < _FAR).tolist():
        bits, other = divmod(int(closest[number]), len(hashed))
        found.append(_finding("near_leak", [hashed[number], hashed[other]], f"differs by {bits} of 64 bits from"))
    return found + [_finding("near_duplicate", [hashed[i] for i in group], "looks like") for group in groups.several()]


def _alike(records: list[Record]) -> Iterator[tuple[Indices, Indices, Indices]]:
    """Pairs (i, j, distance) close in hash whose small grey versions correlate, which allows for other light."""
    grey = np.array([np.frombuffer(bytes.fromhex(record.grey), np.uint8) for record in records], np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
    for pairs in near_pairs(np.array([record.dhash for record in records], np.uint64)):
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            i, j, distance = pairs[start : start + _PAIRS_AT_ONCE].T
            kept = np.einsum("nd,nd->n", grey[i], grey[j]) >= _MIN_CORRELATION
            yield i[kept], j[kept], distance[kept]


class _Groups:
    """Numbers that were joined, directly or through others: each is labelled with the lowest of its group."""

    def __init__(self, count: int) -> None:
        self._label = np.arange(count)

    def join(self, first: Indices, second: Indices) -> None:
        """Join first[n] with second[n], for all n."""
        while True:
            a, b = self._label[first], self._label[second]
            if (a == b).all():
                return
            np.minimum.at(self._label, np.maximum(a, b), np.minimum(a, b))
            while (self._label != self._label[self._label]).any():
                self._label = self._label[self._label]

    def several(self) -> list[list[int]]:
        """Groups of two and more, each in order."""
        members: dict[int, list[int]] = defaultdict(list)
        for number, label in enumerate(self._label.tolist()):
            members[label].append(number)
        return [group for group in members.values() if len(group) > 1]


def _finding(kind: str, records: list[Record], verb: str) -> Finding:
    first, *others = records[:_NAMED]
    more = len(records) - 1 - len(others)
    names = ", ".join(record.ref.path for record in others) + (f" and {more} more" if more else "")
    refs: tuple[SampleRef, ...] = tuple(record.ref for record in records[:_LISTED])
    return Finding(kind=kind, path=first.ref.path, detail=f"{verb} {names}", samples=refs)
