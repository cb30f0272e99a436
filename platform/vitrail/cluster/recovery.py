"""Lets a run that lost a machine go on without it sooner: a callback of Ray Train's controller."""

import time

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.execution.callback import ControllerCallback

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


def look_afresh() -> None:
    """Have Ray look which machines there are, and share them out anew."""
    try:
        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_TIMEOUT_S)
    except ray.exceptions.RayError:
        return  # it will look by itself, up to 20 s later
