"""Makes a run whose machines are lost go on sooner: a callback of Ray Train's controller."""

import os

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.execution.callback import ControllerCallback

_REFRESH_TIMEOUT_S = 5.0


class QuickRecovery(ControllerCallback):
    """Looks at the machines afresh whenever workers failed, and does not wait for those that hang."""

    def after_controller_start(self, *_: object) -> None:
        """Shorten what the controller reads from its own environment, which the driver's does not reach."""
        # A worker whose peer fell silent hangs in an exchange that it cannot be called out of. Ray Train's default is
        # 30 s, and it is killed afterwards either way.
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "3")

    def before_controller_execute_failure_decision(self, *_: object) -> None:
        """Look at the machines afresh: Ray does so every 20 s only, and would place workers on one that is gone."""
        try:
            coordinator = get_or_create_autoscaling_coordinator()
            ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_REFRESH_TIMEOUT_S)
        except ray.exceptions.RayError:
            return  # then it takes up to 20 s longer
