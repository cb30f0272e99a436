"""What passes between a driver and the workers of its runs: a Ray actor that holds statuses, and requests to stop."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class RunBoard:
    """A run's place on a board, for driver and workers alike; the runs of a sweep share a board."""

    actor: Any
    run: str

    @classmethod
    def open(cls, run: str) -> "RunBoard":
        """A new board, which lives until `close`, on this process's machine: others may be lost while the run lives."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_concurrency=2, scheduling_strategy=here)(_Board).remote()
        return cls(actor, run)

    def of(self, run: str) -> "RunBoard":
        """Another run's place on the same board."""
        return RunBoard(self.actor, run)

    def post(self, status: Any) -> None:
        """Replace the run's status, without waiting."""
        self.actor.post.remote(self.run, status)

    def read(self) -> Any:
        """The run's latest status; None before the first."""
        return self.read_all().get(self.run)

    def read_all(self) -> dict[str, Any]:
        """The latest status of every run on the board, by name."""
        statuses: dict[str, Any] = ray.get(self.actor.read_all.remote())
        return statuses

    def post_result(self, result: Any) -> None:
        """Leave what a validation beside the run found, and wait until it is there."""
        ray.get(self.actor.post_result.remote(self.run, result))

    def take_results(self) -> list[Any]:
        """What validations beside the run have left since the last call, in their order."""
        results: list[Any] = ray.get(self.actor.take_results.remote(self.run))
        return results

    def request_stop(self, reason: str) -> None:
        """Ask the workers of all runs on the board to save and end, without waiting."""
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
        self._statuses: dict[str, Any] = {}
        self._results: dict[str, list[Any]] = {}
        self._stop_reason: str | None = None

    def post(self, run: str, status: Any) -> None:
        self._statuses[run] = status

    def read_all(self) -> dict[str, Any]:
        return self._statuses

    def post_result(self, run: str, result: Any) -> None:
        self._results.setdefault(run, []).append(result)

    def take_results(self, run: str) -> list[Any]:
        return self._results.pop(run, [])

    def request_stop(self, reason: str) -> None:
        self._stop_reason = reason

    def stop_reason(self) -> str | None:
        return self._stop_reason
