"""Moves the next batch to the device while the device works on this one."""

from dataclasses import dataclass

import torch

from vitrail.data.batch import Batch
from vitrail.data.stream import TrainingStream
from vitrail.training.step import DeviceBatch


@dataclass(frozen=True)
class PlacedBatch:
    """A batch on the device, and which samples it has."""

    tensors: DeviceBatch
    ids: tuple[str, ...]


class DevicePrefetcher:
    """Batches of a stream on a device; to CUDA, each is copied from pinned memory beside the step before."""

    def __init__(self, stream: TrainingStream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next: PlacedBatch | None = None

    def take(self) -> PlacedBatch:
        """The next batch."""
        batch = self._next or self._place(next(self._stream))
        self._next = None
        if self._copies is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copies)
            for tensor in batch.tensors:
                tensor.record_stream(current)
        return batch

    def prepare_next(self) -> None:
        """Begin the next copy. To be called when a step was given to the device, which then works beside it."""
        if self._copies is not None and self._next is None:
            self._next = self._place(next(self._stream))

    def take_wait_s(self) -> float:
        """Seconds waited for the stream since the last call."""
        return self._stream.take_wait_s()

    def _place(self, batch: Batch) -> PlacedBatch:
        arrays = [torch.from_numpy(array) for array in (batch.images, batch.sizes, batch.labels)]
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                arrays = [array.pin_memory().to(self._device, non_blocking=True) for array in arrays]
        images, sizes, labels = arrays
        return PlacedBatch((images, sizes, labels), batch.ids)
