"""What preparing a data set of ADE20K's size costs: time, and heap beyond what Ray takes by itself."""

import csv
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from vitrail.benchmark.data import photograph
from vitrail.cluster.prepare import PrepareProgress, prepare
from vitrail.errors import UsageError

_BASES = 8


def read_sizes(path: Path) -> list[tuple[str, int, int]]:
    """(split, height, width) of each image, from a CSV with columns of these names."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"split", "height", "width"} <= set(reader.fieldnames or ()):
            raise UsageError(f"{path} must have the columns split, height and width")
        return [(row["split"], int(row["height"]), int(row["width"])) for row in reader]


def write_data_set(folder: Path, sizes: list[tuple[str, int, int]]) -> None:
    """Made-up photographs and masks of these sizes, in ADEChallengeData2016's layout; on every core."""
    for split in {split for split, _, _ in sizes}:
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write_sample, folder), range(len(sizes)), sizes, chunksize=64))


def measure_prepare(source: Path, folder: Path, *, samples: int) -> dict[str, Any]:
    """Prepare `source` on the Ray that is started, watching time and heap."""
    times: list[tuple[int, float]] = []
    begin = time.perf_counter()

    def note(progress: PrepareProgress) -> None:
        times.append((progress.samples_done, time.perf_counter() - begin))

    with HeapWatch() as heap:
        manifest = prepare(source, folder, on_progress=note)
    total_s = time.perf_counter() - begin
    quarters = [next(t for done, t in times if done >= samples * part / 4) for part in (1, 2, 3, 4)]
    return {
        "samples": sum(split.num_samples for split in manifest.splits.values()),
        "shards": sum(len(split.shards) for split in manifest.splits.values()),
        "seconds": total_s,
        "samples/s": samples / total_s,
        "seconds of each quarter": [round(b - a, 1) for a, b in zip([0.0, *quarters], quarters, strict=False)],
        "heap before (GiB)": heap.before_bytes / 2**30,
        "peak heap beyond that (GiB)": (heap.peak_bytes - heap.before_bytes) / 2**30,
    }


class HeapWatch:
    """Watches, twice a second, the anonymous memory of this process and all its descendants together."""

    def __init__(self) -> None:
        self.before_bytes = self.peak_bytes = heap_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, heap_bytes())


def heap_bytes() -> int:
    """Anonymous resident memory of this process and its descendants: no shared memory, no mapped files."""
    status = {int(path.name): _status(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    family, total = {os.getpid()}, 0
    for _ in range(8):  # parents may have higher numbers than their children
        family |= {pid for pid, values in status.items() if values.get("PPid", 0) in family}
    for pid in family:
        total += status.get(pid, {}).get("RssAnon", 0) * 1024
    return total


def _status(process: Path) -> dict[str, int]:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    pairs = (line.partition(":")[::2] for line in lines if line.startswith(("PPid", "RssAnon")))
    return {name: int(value.split()[0]) for name, value in pairs}


def _write_sample(folder: Path, index: int, sample: tuple[str, int, int]) -> None:
    split, height, width = sample
    image, label = _base(index % _BASES)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    image = np.roll(image, index, axis=1)  # no two alike
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(folder / "images" / split / f"{index:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    cv2.imwrite(str(folder / "annotations" / split / f"{index:05d}.png"), label)


@cache
def _base(number: int) -> tuple[Any, Any]:
    cv2.setNumThreads(1)
    return photograph(number, (512, 683))
