"""What all workers of a run do before the next step, decided by rank 0 and agreed without a word from the device."""

import threading
import time
from enum import IntEnum
from typing import Any, Self

import ray
import ray.train
import torch
import torch.distributed as dist

from vitrail.cluster.board import RunBoard

_POLL_S = 1.0
_PREEMPTION_POLL_S = 5.0


class Command(IntEnum):
    """What is to be done before the next step."""

    GO_ON = 0
    SAVE = 1
    """A checkpoint is due: time has passed, or a machine is about to be taken away."""
    STOP = 2
    """Save, and end."""
    LOOK = 3
    """Ask Ray, all together, whether a machine is about to be taken away."""


class Lockstep:
    """Commands for all workers of a run: what rank 0 decided, or what Ray told all of them."""

    def __init__(self, *, rank: int, world_size: int, board: RunBoard | None, save_interval_s: float) -> None:
        self._rank, self._board, self._save_interval_s = rank, board, save_interval_s
        # The device's own queue stays out of it: these messages go between the processes' hosts.
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._warned_of: set[int] = set()
        self._stop = threading.Event()
        self._closed = threading.Event()
        now = time.monotonic()
        self._saved_at, self._looked_at = now, now
        if rank == 0 and board is not None:
            threading.Thread(target=self._watch, args=(board,), name="stop-requests", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def saved(self) -> None:
        """Note that a checkpoint was just made."""
        self._saved_at = time.monotonic()

    def next(self) -> Command:
        """The same command on every worker; each must ask once before every step."""
        command = self._agreed(self._decide() if self._rank == 0 else Command.GO_ON)
        if command == Command.LOOK:
            self._looked_at = time.monotonic()
            return Command.SAVE if self._is_new_preemption() else Command.GO_ON
        return command

    def _decide(self) -> Command:
        now = time.monotonic()
        if self._stop.is_set():
            return Command.STOP
        if now - self._saved_at >= self._save_interval_s:
            return Command.SAVE
        return Command.LOOK if now - self._looked_at >= _PREEMPTION_POLL_S else Command.GO_ON

    def _agreed(self, command: Command) -> Command:
        if self._group is None:
            return command
        message = torch.tensor([int(command)])
        dist.broadcast(message, src=0, group=self._group)
        return Command(int(message))

    def _is_new_preemption(self) -> bool:
        """Whether machines are about to be taken away that no checkpoint was made for yet; the same on all workers."""
        info = ray.train.get_preemption_info()
        if info is None:
            return False
        ranks = {rank for ranks in info.preempted_node_to_ranks.values() for rank in ranks}
        new = ranks - self._warned_of
        self._warned_of |= ranks
        return bool(new)

    def _watch(self, board: RunBoard) -> None:
        while not self._closed.wait(_POLL_S):
            try:
                if board.stop_reason() is not None:
                    self._stop.set()
                    return
            except ray.exceptions.RayError:
                return  # the driver is gone, and with it the run
