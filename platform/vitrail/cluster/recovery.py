"""What Ray Train lacks for runs that lose a machine or their driver: callbacks of its controller."""

import time
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from vitrail.cluster.board import RunBoard

_TIMEOUT_S = 5.0
_KEPT_S = 1.0
"""For so long Ray Train's scaling policy stands by an answer that it has had."""


class FreshView(ControllerCallback):  # type: ignore[misc]
    """Before workers are started again, has Ray look which machines there are.

    It does so every 20 s only, and would ask for a place on the machine that is gone.
    """

    def before_controller_execute_failure_decision(self, *_: object) -> None:
        """Called when workers have failed, and when they found no place in time."""
        look_afresh()
        time.sleep(_KEPT_S)


class NotePlaces(WorkerGroupCallback):  # type: ignore[misc]
    """Notes on the run's board what Ray holds ready for its workers.

    That stays so when a driver is killed among others of the same job, as of a trial that a sweep ends early; whoever
    ended it gives the places back.
    """

    def __init__(self, board: RunBoard) -> None:
        self._board = board

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called at every start."""
        self._board.note_places(worker_group.get_worker_group_state().placement_group_handle.placement_group)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the process by which Ray Train (2.60) would give such places back.

    It asks the dashboard whether the controller lives. Where there is none, or there are two Rays on the machine, it
    asks for ever, and the next trial waits for ever.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def look_afresh() -> None:
    """Have Ray look which machines there are, and share them out anew."""
    try:
        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_TIMEOUT_S)
    except ray.exceptions.RayError:
        return  # it will look by itself, up to 20 s later
