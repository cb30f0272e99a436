"""Connecting to a Ray cluster, or starting Ray on this machine, and saying what it has room for."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import ray

from vitrail.cluster.capacity import Machine, described, fewest_machines, granted_cpus, startable_machines
from vitrail.cluster.loopback import keep_token_private, on_loopback
from vitrail.cluster.watching.run_metrics import SWITCH
from vitrail.errors import UsageError

HEALTH_CHECKS = {
    # A machine that went away without a word is missed after 18 seconds, (2 + 4) * 3, not after 65.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
"""What the head of a cluster should be started with; set here for the one that is started here."""


class InfeasibleError(UsageError):
    """More workers, CPUs or GPUs were asked for than the cluster can ever give."""

    def __init__(self, asked: str, available: str) -> None:
        super().__init__(asked, available)
        self.asked, self.available = asked, available

    def __str__(self) -> str:
        return f"{self.asked} do not fit on this cluster, which has {self.available}; ask for fewer workers"


def start_ray(address: str | None = None, *, num_cpus: int | None = None) -> None:
    """Join the cluster at `address` (or `RAY_ADDRESS`); with neither, start Ray here. Does nothing if joined.

    What is started here listens on the loopback address alone; a Ray for several machines is `ray start`'s.
    Workers' output is not printed here: what a user should see goes through `cluster.progress`.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Two actors fewer per run: one machine is not preempted in part, and nobody scrapes its metrics.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault(SWITCH, "0")
        for name, value in HEALTH_CHECKS.items():
            os.environ.setdefault(name, value)
        keep_token_private()
    options = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    # Says at every start that token authentication is on, which is Ray's default and ours.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    with nullcontext() if address else on_loopback():
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=True,
            **{key: value for key, value in options.items() if value is not None},
        )


@contextmanager
def ray_cluster(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """`start_ray`, and at the end leave the cluster if this call joined it."""
    joined_before = ray.is_initialized()
    start_ray(address, num_cpus=num_cpus)
    try:
        yield
    finally:
        if not joined_before:
            ray.shutdown()


def cpu_share(workers: int, *, of: float = 1.0, on_gpu_machines: bool = False) -> int:
    """CPUs that each of `workers` gets if together they take the share `of` of the cluster's, at least one. In a job of
    the queue, that share of what is counted for each."""
    if (granted := granted_cpus()) is not None:
        return max(1, int(granted * of))
    found: Sequence[Machine] = machines()
    if startable_machines():
        found = fewest_machines(found, math.ceil(workers / of), on_gpu_machines=on_gpu_machines)
    return share_cpus(found, workers, of=of, on_gpu_machines=on_gpu_machines)


def share_cpus(
    machines: Sequence[Mapping[str, float]], workers: int, *, of: float = 1.0, on_gpu_machines: bool = False
) -> int:
    """`cpu_share` of machines by their resources: no more than one machine has, and where a worker needs a GPU, only
    of the machines that have some."""
    cpus = [int(machine.get("CPU", 0)) for machine in machines if "GPU" in machine or not on_gpu_machines]
    return max(1, min(int(sum(cpus) * of) // workers, max(cpus, default=1)))


def has_cpu_machines() -> bool:
    """Whether machines without a GPU stand beside some with one."""
    with_gpu = {"GPU" in machine for machine in machines() if machine.get("CPU")}
    return with_gpu == {True, False}


def machines(startable: Sequence[Machine] | None = None) -> list[Machine]:
    """The resources of each machine of the cluster that is alive, or, where Ray starts them for work that waits, of
    each that it may start: what `startable_machines` says, here or where the caller asked it."""
    startable = startable_machines() if startable is None else startable
    return list(startable) or [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_feasible(
    workers: int,
    *,
    cpus_per_worker: float,
    gpus_per_worker: float,
    spare_cpus: int = 0,
    validations: int = 0,
    startable: Sequence[Machine] | None = None,
) -> None:
    """Raise `InfeasibleError` unless the cluster, grown as far as it may, can hold the workers at once, with as many
    validations beside them, each as large as a worker, and has CPUs to spare. `startable` is as for `machines`.

    Ray Train would try for ever: a static cluster never reports that a request cannot be met.
    """
    found = machines(startable)
    cpus, gpus = (sum(machine.get(unit, 0.0) for machine in found) for unit in ("CPU", "GPU"))
    places = workers + validations
    if places * cpus_per_worker + spare_cpus > cpus or places * gpus_per_worker > gpus:
        asked = f"{workers} workers with {cpus_per_worker:g} CPUs and {gpus_per_worker:g} GPUs each"
        asked += f" and {validations} like them for validation" if validations else ""
        asked += f" and {spare_cpus} CPU for Ray Data" if spare_cpus else ""
        raise InfeasibleError(asked, described(found))
