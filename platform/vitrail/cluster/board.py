"""What passes between a run's driver and its workers: a Ray actor that holds the status, and a request to stop."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class RunBoard:
    """Handle of a run's board, for driver and workers alike."""

    actor: Any

    @classmethod
    def open(cls) -> "RunBoard":
        """A new board, which lives until `close`, on this process's machine: others may be lost while the run lives."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return cls(ray.remote(num_cpus=0, max_concurrency=2, scheduling_strategy=here)(_Board).remote())

    def post(self, status: Any) -> None:
        """Replace the status, without waiting."""
        self.actor.post.remote(status)

    def read(self) -> Any:
        """The latest status; None before the first."""
        return ray.get(self.actor.read.remote())

    def request_stop(self, reason: str) -> None:
        """Ask the workers to save and end, without waiting."""
        self.actor.request_stop.remote(reason)

    def stop_reason(self) -> str | None:
        """Why the workers were asked to stop; None while they were not."""
        reason: str | None = ray.get(self.actor.stop_reason.remote())
        return reason

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.actor)


class _Board:
    def __init__(self) -> None:
        self._status: Any = None
        self._stop_reason: str | None = None

    def post(self, status: Any) -> None:
        self._status = status

    def read(self) -> Any:
        return self._status

    def request_stop(self, reason: str) -> None:
        self._stop_reason = reason

    def stop_reason(self) -> str | None:
        return self._stop_reason
