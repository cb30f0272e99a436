"""What an autoscaled cluster may grow to: the machines that its launcher's file lets Ray start, before any has been.

Where Ray starts machines only for work that waits, those that are alive say nothing of what fits.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CLUSTER_VARIABLE = "VITRAIL_CLUSTER"
"""On the head, names the launcher's file that made the cluster."""

GRANTED_CPUS_VARIABLE = "VITRAIL_CPUS_PER_WORKER"
"""Set for a job of the queue: the CPUs that are counted for each of its workers, so that it takes no more."""

Machine = Mapping[str, float]


def startable_machines() -> list[dict[str, float]]:
    """What the file that `VITRAIL_CLUSTER` names lets Ray start; nothing where none is named."""
    path = os.environ.get(CLUSTER_VARIABLE)
    return machines_of(read_launcher_file(Path(path).expanduser())) if path else []


def read_launcher_file(path: Path) -> dict[str, Any]:
    """A file for `ray up`; empty where there is none."""
    return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def machines_of(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """The resources of each machine that a launcher's file lets Ray start, without the head.

    Nothing where it does not say them all, as for one's own machines, which are all started at once.
    """
    most = int(config.get("max_workers", 2))
    found: list[dict[str, float]] = []
    for name, node in config.get("available_node_types", {}).items():
        if name == config.get("head_node_type"):
            continue
        if not node.get("resources"):
            return []
        found += [dict(node["resources"])] * min(most, int(node.get("max_workers", most)))
    return found


def granted_cpus() -> int | None:
    """The CPUs that each worker of this job has in the queue; None outside of a queue, where all may be taken."""
    granted = os.environ.get(GRANTED_CPUS_VARIABLE)
    return int(granted) if granted else None


def worker_places(machines: Iterable[Machine], *, gpus_per_worker: float) -> int:
    """How many workers machines hold at once: each needs a CPU, and its GPUs on the same machine."""
    places = 0
    for machine in machines:
        cpus = int(machine.get("CPU", 0))
        places += min(cpus, int(machine.get("GPU", 0) / gpus_per_worker)) if gpus_per_worker else cpus
    return places


def fewest_machines(machines: Sequence[Machine], workers: int, *, on_gpu_machines: bool) -> list[Machine]:
    """As many machines as have a GPU for each worker, or, without a need for GPUs, a CPU; all if these are too few.

    What a run shares out among its workers, so that it does not make Ray start every machine that it may.
    """
    unit = "GPU" if on_gpu_machines else "CPU"
    chosen: list[Machine] = []
    for machine in sorted(machines, key=lambda machine: ("GPU" in machine) != on_gpu_machines):
        if sum(found.get(unit, 0) for found in chosen) >= workers:
            break
        chosen.append(machine)
    return chosen


def described(machines: Iterable[Machine]) -> str:
    """`32 CPUs and 8 GPUs` of these machines together."""
    machines = list(machines)
    cpus, gpus = (sum(machine.get(unit, 0) for machine in machines) for unit in ("CPU", "GPU"))
    return f"{cpus:g} CPUs and {gpus:g} GPUs"
