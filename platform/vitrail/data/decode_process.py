"""A process beside a training worker that makes its batches, and what drives it from there.

    with DecodeProcess(job) as process:
        batch = process.make(step=7)      # blocks without holding Python's lock, so let a thread do it

Pixels come back through memory that both map; commands and answers, through the process's own input and output. It is
a program of its own (`python -m vitrail.data.decode_process`), not a fork: forking would copy a worker that has threads
and a CUDA context. It ends when its input does, so none outlives its worker.
"""

import mmap
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from vitrail.config import TransformConfig
from vitrail.data.order import SampleOrder, StreamPlan
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.data.batch import Batch


class DecodeProcessError(VitrailError):
    """A decoding process ended by itself, or failed in a way that has no name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"a decoding process {self.reason}"


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """What a process is to know of the stream that it works for."""

    folder: str
    split: str
    transforms: TransformConfig
    plan: StreamPlan

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Arrays of a batch in the shared memory, one after the other."""
        count, side = self.plan.share, self.transforms.crop_size
        return {
            "windows": ((count, 6), np.int64),  # first, for its alignment
            "images": ((count, 3, side, side), np.uint8),
            "labels": ((count, side, side), np.uint8),
        }

    @property
    def size_bytes(self) -> int:
        """Of the shared memory."""
        return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.shapes.values())

    def arrays(self, memory: mmap.mmap) -> dict[str, Any]:
        """Views of the shared memory."""
        views, offset = {}, 0
        for name, (shape, kind) in self.shapes.items():
            views[name] = np.frombuffer(memory, kind, int(np.prod(shape)), offset).reshape(shape)
            offset += views[name].nbytes
        return views


class DecodeProcess:
    """A started process; `ready` once it answers. One thread at a time may use it."""

    def __init__(self, job: DecodeJob) -> None:
        descriptor = os.memfd_create("vitrail-batch")
        try:
            os.ftruncate(descriptor, job.size_bytes)
            self._arrays = job.arrays(mmap.mmap(descriptor, job.size_bytes))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vitrail.data.decode_process", str(descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                # The package may have come to this process by a path that only sys.path knows.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        finally:
            os.close(descriptor)
        self._send(job)

    def wait_ready(self) -> None:
        """Block until the process has opened the data set.

        Raises:
            DecodeProcessError: it ended before.
        """
        self._receive()

    def make(self, step: int) -> "Batch":
        """This worker's batch of `step`; raises what making it in this process would raise."""
        from vitrail.data.batch import Batch

        self._send(step)
        ids = self._receive()
        return Batch(ids=ids, **{name: array.copy() for name, array in self._arrays.items()})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except OSError:
            raise DecodeProcessError(f"ended by itself (exit code {self._process.wait()})") from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            answer = pickle.load(self._process.stdout)
        except EOFError:
            raise DecodeProcessError(f"ended by itself (exit code {self._process.wait()})") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def serve(descriptor: int, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Make the batches of the steps that are asked for, until no more are."""
    # albumentations imports torch where it finds it, for something that is not used here: four seconds, half a GB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from vitrail.data.batch import Assembly, SampleLoader
    from vitrail.data.shards import ShardReader

    job: DecodeJob = pickle.load(requests)
    memory = mmap.mmap(descriptor, job.size_bytes)
    reader = ShardReader(job.folder, job.split)
    load, order = SampleLoader(reader, job.transforms, seed=job.plan.seed), SampleOrder(len(reader), job.plan.seed)
    arrays = job.arrays(memory)
    _answer(answers, "ready")
    while True:
        try:
            step = pickle.load(requests)
        except EOFError:
            return
        try:
            _answer(answers, Assembly(load, job.plan.places(order, step), into=arrays).finish().ids)
        except VitrailError as error:
            _answer(answers, error)


def _answer(answers: IO[bytes], message: Any) -> None:
    pickle.dump(message, answers)
    answers.flush()


if __name__ == "__main__":
    # What libraries print must not mix with the answers.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(KeyboardInterrupt, BrokenPipeError):  # the worker has gone
        serve(int(sys.argv[1]), sys.stdin.buffer, own)
