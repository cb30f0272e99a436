"""Reads a data set once with Ray Data and says what is wrong with it; only small records come back to the driver.

    diagnosis = examine("SRC")            # or a prepared data set
    diagnosis.count("error")

Rows are groups of samples, so that a task is worth its start.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import ray.data
from pydantic import TypeAdapter

from vitrail.cluster.runtime import ray_cluster
from vitrail.data.doctor.diagnosis import Diagnosis, Subject, diagnose
from vitrail.data.doctor.inspection import IdRange, Record, inspect_pair, inspect_rows
from vitrail.data.layout import Layout, Pair, read_layout
from vitrail.data.manifest import MANIFEST_NAME, Manifest
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError, VitrailError
from vitrail.strict import Strict

_PAIRS_PER_TASK = 24
_RECORDS = TypeAdapter(list[Record])

OnProgress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


class UnsoundDataError(DataError):
    """A data set with errors: how many of each kind and the way out, a line each."""

    def __init__(self, place: str, lines: tuple[str, ...], report: str) -> None:
        super().__init__(place, lines, report)
        self.place, self.lines, self.report = place, lines, report

    def __str__(self) -> str:
        head = f"{self.place} would corrupt training; {self.report} shows what and where"
        return "\n".join((head, *(f"  {line}" for line in self.lines)))

    @classmethod
    def of(cls, diagnosis: Diagnosis, report: str) -> "UnsoundDataError":
        """What to raise for a diagnosis with errors, whose page is `report`."""
        groups = [group for group in diagnosis.groups if group.kind.severity == "error"]
        lines = tuple(f"{group.count:,} x {group.kind.name}: {group.kind.way_out}" for group in groups)
        return cls(diagnosis.subject.place, lines, report)


def examine(place: Place, *, address: str | None = None, on_progress: OnProgress | None = None) -> Diagnosis:
    """The diagnosis of a source folder, or of a prepared data set (a folder with manifest.json).

    Works on the Ray cluster at `address`, or the one already joined, or starts Ray on this machine. All workers must
    reach the folder.

    Raises:
        UsageError: `place` is neither.
        DataError: its manifest or `classes.csv` cannot be understood, or a worker cannot reach it.
    """
    folder = Folder.at(place)
    if folder.size_bytes(MANIFEST_NAME) is None:
        layout = read_layout(folder)
        subject = Subject.of_layout(layout)
        groups, look = _pair_groups(layout), partial(_look_at_pairs, folder, subject.ids)
        return diagnose(subject, _look_at_all(look, groups, address, on_progress), faults=layout.faults)
    manifest = Manifest.load(folder)
    records = _look_at_all(partial(_look_at_rows, folder), _row_groups(manifest), address, on_progress)
    return diagnose(Subject.of_manifest(folder, manifest), records, faults=manifest.faults, manifest=manifest)


class _Group(Strict):
    """Consecutive samples of a split that one task looks at; `pairs` are their files in a source folder."""

    split: str
    start: int
    stop: int
    pairs: tuple[Pair, ...] = ()


def _pair_groups(layout: Layout) -> list[_Group]:
    groups = []
    for split, pairs in layout.splits.items():
        for start in range(0, len(pairs), _PAIRS_PER_TASK):
            part = pairs[start : start + _PAIRS_PER_TASK]
            groups.append(_Group(split=split, start=start, stop=start + len(part), pairs=part))
    return groups


def _row_groups(manifest: Manifest) -> list[_Group]:
    """A shard each, so that one that cannot be opened is tried by one task."""
    groups = []
    for name, split in manifest.splits.items():
        start = 0
        for shard in split.shards:
            groups.append(_Group(split=name, start=start, stop=start + shard.rows))
            start += shard.rows
    return groups


def _look_at_pairs(folder: Folder, ids: IdRange, group: _Group) -> list[Record]:
    return [inspect_pair(folder, group.split, index, pair, ids) for index, pair in enumerate(group.pairs, group.start)]


def _look_at_rows(folder: Folder, group: _Group) -> list[Record]:
    return inspect_rows(ShardReader(folder, group.split), range(group.start, group.stop))


def _look_at_all(
    look: Callable[[_Group], list[Record]],
    groups: Sequence[_Group],
    address: str | None,
    on_progress: OnProgress | None,
) -> list[Record]:
    if not groups:  # nothing but faults
        return []
    records: list[Record] = []
    total, done = sum(group.stop - group.start for group in groups), 0
    with ray_cluster(address):
        for size, found in _map_groups(look, groups):
            records += found
            done += size
            if on_progress is not None:
                on_progress(done, total)
    return records


def _map_groups(look: Callable[[_Group], list[Record]], groups: Sequence[_Group]) -> Iterator[tuple[int, list[Record]]]:
    """Samples looked at and their records, group by group as they are finished."""

    def look_at(row: dict[str, Any]) -> dict[str, Any]:
        cv2.setNumThreads(1)  # parallelism is over groups
        group = _Group.model_validate_json(row["group"])
        try:
            records, fault = _RECORDS.dump_json(look(group)).decode(), None
        except VitrailError as error:  # Ray Data would wrap it and lose it on the way
            records, fault = "[]", str(error)
        return {"size": group.stop - group.start, "records": records, "fault": fault}

    rows = [{"group": group.model_dump_json()} for group in groups]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(look_at)
    for row in dataset.iter_rows():
        if row["fault"] is not None:
            raise DataError(row["fault"])
        yield int(row["size"]), _RECORDS.validate_json(row["records"])
