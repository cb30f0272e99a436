"""Prepares a data set with Ray Data: one row per shard, each written by the task that maps it; the manifest last."""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import ray.data

from vitrail.cluster.runtime import ray_cluster
from vitrail.data.layout import read_layout
from vitrail.data.manifest import MANIFEST_NAME, Manifest
from vitrail.data.shard_writer import (
    ShardPlan,
    ShardReport,
    assemble_manifest,
    plan_shards,
    source_signature,
    write_shard,
)
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError, UsageError

DEFAULT_SHARD_SIZE_BYTES = 64 << 20
_FAULTS_SHOWN = 5
_SHARD_NAME = re.compile(r"\w+-\d{5}")

OnError = Literal["stop", "skip"]


class FaultySamplesError(DataError):
    """Samples that cannot be used, while the user asked to stop at such."""

    def __init__(self, source: str, faults: tuple[str, ...], total: int) -> None:
        super().__init__(source, faults, total)
        self.source, self.faults, self.total = source, faults, total

    def __str__(self) -> str:
        more = self.total - len(self.faults)
        lines = [f"  {fault}" for fault in self.faults] + ([f"  and {more} more"] if more else [])
        count = "1 file" if self.total == 1 else f"{self.total} files"
        return (
            f"{count} in {self.source} cannot be used; mend them, or leave them out with --on-error skip\n"
            + "\n".join(lines)
        )


@dataclass(frozen=True, kw_only=True)
class PrepareProgress:
    """How far a run has come."""

    samples_done: int
    samples: int
    shards_done: int
    shards: int


def prepare(
    src: Place,
    dst: Place,
    *,
    on_error: OnError = "stop",
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    overwrite: bool = False,
    address: str | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> Manifest:
    """Write the data set in `src` (ADEChallengeData2016's layout) as shards and a manifest in `dst`; both are
    folders that every worker reaches, or URIs of an object store.

    An interrupted run is continued: shards that are finished, from files that have not changed, are kept. Works on the
    Ray cluster at `address`, or the one already joined, or starts Ray on this machine.

    All samples are looked at before anything is said about faults; with `on_error="stop"` no manifest is written then.

    Raises:
        UsageError: `src` is missing or has another layout, or `dst` cannot be written or holds another data set.
        DataError: samples or `classes.csv` are at fault; with `on_error="skip"`, only if no sample is left.
    """
    source, folder = Folder.at(src), Folder.at(dst)
    if shard_size_bytes < 1:
        raise UsageError(f"shard_size_bytes={shard_size_bytes} must be at least 1")
    layout = read_layout(source)
    plans = plan_shards(layout, shard_size_bytes=shard_size_bytes)
    _check_destination(source, folder, source_signature(plans), overwrite=overwrite)
    with ray_cluster(address) if plans else nullcontext():
        reports = _write_all(plans, source, folder, on_progress)
    manifest = assemble_manifest(layout, plans, reports)
    if manifest.faults and (on_error == "stop" or not manifest.splits):
        raise FaultySamplesError(str(source), tuple(map(str, manifest.faults[:_FAULTS_SHOWN])), len(manifest.faults))
    manifest.save(folder)
    _remove_stale(folder, plans)
    return manifest


def _check_destination(source: Folder, folder: Folder, signature: str, *, overwrite: bool) -> None:
    """Create the folder, and take away the manifest of a data set that is about to be replaced."""
    if source.contains(folder):
        raise UsageError(f"{folder} lies in the source folder; choose an output folder outside {source}")
    folder.make_writable()
    if folder.size_bytes(MANIFEST_NAME) is None:
        return
    if overwrite:
        folder.delete(MANIFEST_NAME)
        return
    present = Manifest.load(folder)
    if present.source_signature != signature:
        raise UsageError(
            f"{folder} already holds the data set {present.name!r}, made from other files or with other settings; "
            "choose another folder, or replace it with --overwrite"
        )


def _write_all(
    plans: list[ShardPlan], source: Folder, folder: Folder, on_progress: Callable[[PrepareProgress], None] | None
) -> list[ShardReport]:
    """The reports of all plans, in their order; shards are written by Ray tasks, one each."""
    samples, done = sum(len(plan.pairs) for plan in plans), 0
    reports: dict[int, ShardReport] = {}
    for index, report in _map_plans(plans, source, folder):
        reports[index] = report
        done += len(plans[index].pairs)
        if on_progress is not None:
            on_progress(
                PrepareProgress(samples_done=done, samples=samples, shards_done=len(reports), shards=len(plans))
            )
    return [reports[index] for index in range(len(plans))]


def _map_plans(plans: list[ShardPlan], source: Folder, folder: Folder) -> Iterator[tuple[int, ShardReport]]:
    def write(row: dict[str, Any]) -> dict[str, Any]:
        plan = ShardPlan.model_validate_json(row["plan"])
        try:
            report = write_shard(plan, source=source, folder=folder)
        except UsageError as error:  # Ray Data would wrap it and lose it on the way
            return {"index": row["index"], "report": None, "error": str(error)}
        return {"index": row["index"], "report": report.model_dump_json(), "error": None}

    if not plans:  # nothing but faults
        return
    rows = [{"index": index, "plan": plan.model_dump_json()} for index, plan in enumerate(plans)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(write)
    for row in dataset.iter_rows():
        if row["error"] is not None:
            raise UsageError(row["error"])
        yield int(row["index"]), ShardReport.model_validate_json(row["report"])


def _remove_stale(folder: Folder, plans: list[ShardPlan]) -> None:
    """Delete shards of an earlier data set in the same folder, which the manifest does not name."""
    current = {plan.name for plan in plans}
    for entry in folder.files():
        stem, _, suffix = entry.name.rpartition(".")
        if suffix == "json" and _SHARD_NAME.fullmatch(stem) and stem not in current:
            folder.delete(f"{stem}.arrow")
            folder.delete(entry.name)
