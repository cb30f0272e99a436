"""What passes between a driver and the workers of its runs: a Ray actor that holds statuses, and requests to stop."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_NAME = "board of {}"


@dataclass(frozen=True)
class RunBoard:
    """A run's place on a board, for driver and workers alike; the runs of a sweep share a board."""

    actor: Any
    run: str

    @classmethod
    def open(cls, run: str) -> "RunBoard":
        """A new board, which lives until `close`, on this process's machine: others may be lost while the run lives."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": 2, "scheduling_strategy": here, "name": _NAME.format(run)}
        return cls(ray.remote(_Board).options(**options).remote(), run)

    @classmethod
    def find(cls, run: str) -> "RunBoard":
        """The board that a process of this Ray job has opened for the run."""
        return cls(ray.get_actor(_NAME.format(run)), run)

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

    def note_places(self, places: PlacementGroup) -> None:
        """Note what Ray holds ready for the run's workers."""
        self.actor.note_places.remote(self.run, places)

    def free_places(self) -> None:
        """Give back what Ray holds ready for the run's workers, and end those that are left in it."""
        places: PlacementGroup | None = ray.get(self.actor.take_places.remote(self.run))
        if places is not None:
            remove_placement_group(places)

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
        self._places: dict[str, Any] = {}
        self._stop_reason: str | None = None

    def post(self, run: str, status: Any) -> None:
        self._statuses[run] = status

    def read_all(self) -> dict[str, Any]:
        return self._statuses

    def post_result(self, run: str, result: Any) -> None:
        self._results.setdefault(run, []).append(result)

    def take_results(self, run: str) -> list[Any]:
        return self._results.pop(run, [])

    def note_places(self, run: str, places: Any) -> None:
        self._places[run] = places

    def take_places(self, run: str) -> Any:
        return self._places.pop(run, None)

    def request_stop(self, reason: str) -> None:
        self._stop_reason = reason

    def stop_reason(self) -> str | None:
        return self._stop_reason
