"""How fast training crops are made: stage by stage, by both streams, and against mmsegmentation's pipeline.

Everything that is compared is done in turn, in one run, on the same images and, where a figure is per core, on the same
core. Figures are medians.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from vitrail.benchmark.asking import NO_PEER, Responder
from vitrail.benchmark.record import Timing, median_ratio
from vitrail.config import TransformConfig
from vitrail.data.batch import Assembly, SampleLoader
from vitrail.data.codec import UInt8Array, decode_image
from vitrail.data.geometry import choose_crop, crop_image, draw_crop
from vitrail.data.label_codec import decode_label
from vitrail.data.order import StreamPlan
from vitrail.data.photometric import distort, draw_distortion
from vitrail.data.shards import ShardReader
from vitrail.data.stream import ShardStream, TrainingStream

_GLOBAL_BATCH = 16
_PLAN = StreamPlan(seed=0, global_batch=_GLOBAL_BATCH)


def write_photographs(folder: Path, count: int, *, size: tuple[int, int] = (512, 683)) -> None:
    """Made-up images of ADE20K's median size with masks of its 150 classes, as smooth as photographs.

    JPEG of quality 90, in ADEChallengeData2016's layout; the first also as validation.
    """
    for index in range(count):
        image, label = photograph(index, size)
        for split in ("training", "validation") if index == 0 else ("training",):
            for kind, array, suffix in (("images", image, "jpg"), ("annotations", label, "png")):
                path = folder / kind / split / f"{index:05d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), array, [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == "jpg" else [])


def photograph(index: int, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """A made-up image (H, W, 3) and a mask (H, W) of raw ids 0..150."""
    rng = np.random.Generator(np.random.PCG64([7, index]))
    smooth = cv2.resize(rng.random((9, 12, 3), np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    image = np.clip(smooth * 255 + rng.normal(0, 5, (*size, 3)), 0, 255).astype(np.uint8)
    ids = cv2.resize(rng.random((9, 12), np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return image, np.minimum(ids * 151, 150).astype(np.uint8)


class DataBenchmark:
    """Measurements over the training split of a prepared data set."""

    def __init__(self, reader: ShardReader, transforms: TransformConfig, *, repeats: int) -> None:
        self.reader, self.transforms, self.repeats = reader, transforms, repeats
        self.batches = max(1, len(reader) // _GLOBAL_BATCH)
        self.images = self.batches * _GLOBAL_BATCH

    def stages(self) -> dict[str, float]:
        """CPU milliseconds per image of each stage, and of all of them in the bare loop, on one core."""
        encoded = [self.reader.encoded(index) for index in range(len(self.reader))]
        samples = [each.decode() for each in encoded]
        load = SampleLoader(self.reader, self.transforms, seed=0)
        crops = [load(0, index) for index in range(len(samples))]
        draws = [np.random.Generator(np.random.PCG64(index)) for index in range(len(samples))]
        distortions = [draw_distortion(rng) for rng in draws]
        places = [draw_crop(rng, self.transforms) for rng in draws]

        def geometry() -> None:
            for sample, draw in zip(samples, places, strict=True):
                window, label = choose_crop(sample.label, draw, self.transforms)
                image = crop_image(sample.image, window)
                if draw.ratio % 0.2 < 0.1:  # half of them, as in training
                    cv2.flip(image, 1), cv2.flip(label, 1)

        collate = _Collate(crops, self.transforms.crop_size)
        work: dict[str, Callable[[], object]] = {
            "read and check": lambda: [self.reader.encoded(index) for index in range(len(encoded))],
            "decode image": lambda: [decode_image(memoryview(each.image)) for each in encoded],
            "decode mask": lambda: [decode_label(each.label, each.size) for each in encoded],
            "geometry": geometry,
            "photometric": lambda: [distort(c.image, d) for c, d in zip(crops, distortions, strict=True)],
            "collate": collate,
        }
        timings = {name: Timing() for name in work}
        whole = Timing()
        with one_core():
            for _ in range(self.repeats + 1):
                for name, timing in timings.items():
                    timing.measure(work[name])
                whole.measure(self.bare)
        per_image = {name: timing.median_cpu_s / len(encoded) * 1e3 for name, timing in timings.items()}
        total = whole.median_cpu_s / self.images * 1e3
        return {**per_image, "seeds, albumentations, calls": total - sum(per_image.values()), "all": total}

    def bare(self) -> None:
        """Every image once, batch by batch, in a plain loop of one thread."""
        with ShardStream(self.reader, self.transforms, _PLAN) as stream:
            self.consume(stream, self.batches)

    def threaded(self, threads: int) -> None:
        """The same through threads, as a training worker does it."""
        with ShardStream(self.reader, self.transforms, _PLAN, threads=threads) as stream:
            self.consume(stream, self.batches)

    def _processes(self, count: int) -> tuple[Timing, Timing]:
        """Passes made by so many processes, in turn with the bare loop on one core."""
        processes, bare = Timing(), Timing()
        with ShardStream(self.reader, self.transforms, _PLAN, threads=1, processes=count) as stream:
            while not stream.has_processes:
                next(stream)
            for _ in range(self.repeats + 1):
                self.consume(stream, 4 * count)  # what was made ahead of us
                processes.measure(lambda: self.consume(stream, self.batches))
                time.sleep(1)  # they go on for a while, making batches ahead
                with one_core():
                    bare.measure(self.bare)
        return processes, bare

    def consume(self, stream: TrainingStream, batches: int) -> None:
        """Take so many batches and do nothing with them."""
        for _ in range(batches):
            next(stream)

    def streams(self, peer_python: Path | None, source: Path) -> dict[str, Any]:
        """Images per second of the bare loop, the in-worker reader and the peer, in turn."""
        cores = len(os.sched_getaffinity(0))
        bare, reader, threads, peer, peer_whole = (Timing() for _ in range(5))
        with one_core(), Peer.start(peer_python, source) as genuine:
            for _ in range(self.repeats + 1):
                bare.measure(self.bare)
                reader.measure(lambda: self.threaded(1))
                if genuine is not None:
                    answer = genuine.measure()
                    peer.add(**_scaled(answer["pipeline"], self.images / genuine.images))
                    peer_whole.add(**_scaled(answer["preprocessed"], self.images / genuine.images))
                with all_cores():
                    threads.measure(lambda: self.threaded(cores))
        processes, beside = self._processes(cores)
        results: dict[str, Any] = {
            "cores": cores,
            "bare, one core (images/s)": self.images / bare.median_wall_s,
            "in-worker reader, one core (images/s)": self.images / reader.median_wall_s,
            "in-worker reader / bare": median_ratio(bare, reader),
            "in-worker reader, a thread per core (images/s)": self.images / threads.median_wall_s,
            "in-worker reader, a process per core (images/s)": self.images / processes.median_wall_s,
            "a process per core / bare x cores": median_ratio(beside, processes) / cores,
        }
        if peer.wall_s:
            results |= {
                "mmsegmentation's pipeline, one core (images/s)": self.images / peer.median_wall_s,
                "bare / mmsegmentation's pipeline": median_ratio(peer, bare),
                "mmsegmentation, preprocessor included, one core (images/s)": self.images / peer_whole.median_wall_s,
                "bare / mmsegmentation, preprocessor included": median_ratio(peer_whole, bare),
            }
        return results

    def first_batch_s(self, step: int) -> float:
        """Seconds from opening the data set to the batch of `step`."""
        begin = time.perf_counter()
        reader = ShardReader(self.reader.folder, self.reader.split)
        plan = StreamPlan(seed=0, global_batch=_GLOBAL_BATCH, first_step=step)
        with ShardStream(reader, self.transforms, plan, threads=len(os.sched_getaffinity(0))) as stream:
            next(stream)
        return time.perf_counter() - begin

    def ray_data(
        self,
        started: Callable[[], AbstractContextManager[None]],
        open_stream: Callable[[], TrainingStream],
        *,
        batches: int,
    ) -> dict[str, Any]:
        """The Ray Data stream with one task at a time, between two measurements of the bare loop without Ray."""
        before_s = self._bare_s()
        with started():
            begin = time.perf_counter()
            with open_stream() as stream:
                next(stream)
                first_s = time.perf_counter() - begin
                self.consume(stream, batches // 2)  # until what was made ahead of us no longer counts
                begin, busy = time.perf_counter(), _busy_s()
                self.consume(stream, batches)
                wall_s, busy_s = time.perf_counter() - begin, _busy_s() - busy
        bare_s = (before_s + self._bare_s()) / 2
        images = batches * _GLOBAL_BATCH
        return {
            "images/s": images / wall_s,
            "bare, one core, before and after (images/s)": 1 / bare_s,
            "Ray Data stream / bare": bare_s * images / wall_s,
            "transport and scheduling (ms per image)": (wall_s / images - bare_s) * 1e3,
            "CPU of all processes (ms per image)": busy_s / images * 1e3,
            "first batch (s)": first_s,
        }

    def _bare_s(self) -> float:
        """Seconds per image of the bare loop on one core."""
        timing = Timing()
        with one_core():
            for _ in range(self.repeats + 1):
                timing.measure(self.bare)
        return timing.median_wall_s / self.images


class Peer:
    """mmsegmentation in its own Python, asked to do its pass again and again."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self.images: int = responder.ask(do="count")["images"]

    @classmethod
    @contextmanager
    def start(cls, python: Path | None, source: Path) -> Iterator[Self | None]:
        """A running peer on the core that this process is on, or None where no Python is named.

        Raises:
            UsageError: that Python has no mmsegmentation.
        """
        if python is None:
            yield None
            return
        with Responder.start(python, "peer_pipeline.py", [source], complaint=NO_PEER) as responder:
            yield cls(responder)

    def measure(self) -> dict[str, dict[str, float]]:
        """One pass over its images: seconds by the clock and of CPU."""
        return self._responder.ask(do="pass")


class _Collate:
    """Puts crops that are already made into batches."""

    def __init__(self, crops: list[Any], crop_size: int) -> None:
        self.crop_size, self._crops = crop_size, crops

    def __call__(self) -> None:
        for start in range(0, len(self._crops), _GLOBAL_BATCH):
            part = self._crops[start : start + _GLOBAL_BATCH]
            Assembly(_Made(part, self.crop_size), [(0, index) for index in range(len(part))]).finish()


class _Made(SampleLoader):
    """A loader whose crops are there."""

    def __init__(self, crops: list[Any], crop_size: int) -> None:
        self._crops, self.crop_size = crops, crop_size

    def __call__(self, epoch: int, index: int) -> Any:
        return self._crops[index]


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let this process use every core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _scaled(times: dict[str, float], share: float) -> dict[str, float]:
    return {name: value * share for name, value in times.items()}


def _busy_s() -> float:
    """CPU seconds that this machine has spent on anything."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
