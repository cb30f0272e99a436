"""What runs on a cluster now, by what the dashboard's address tells: a tunnel to that one port is all it takes.

Rates come from the ends of the jobs' logs. Ray's metrics hold them more finely, but on ports of the machines, which a
tunnel to the dashboard does not reach.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import requests

from vitrail.cluster.jobs.jobs import Job, Jobs
from vitrail.cluster.jobs.server import explained, token_header
from vitrail.cluster.watching.job_progress import JobProgress, read_progress

_TIMEOUT_S = 15
_LOG_LINES = 200
"""Read from the end of a log, which says where the run is every ten seconds."""
_REQUESTS_AT_ONCE = 8
_TRAIN_WORKER = "RayTrainWorker"
"""What Ray Train (2.60) calls the class of its workers."""
_USE = re.compile(r"^([\d.]+)/([\d.]+) (CPU|GPU)\b", re.MULTILINE)


@dataclass(frozen=True)
class Use:
    """How much of something is taken."""

    used: float
    total: float


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver tells of it."""

    name: str
    busy_percent: float | None
    memory_mib: Use


@dataclass(frozen=True, kw_only=True)
class MachineUse:
    """A machine of the cluster that is alive."""

    name: str
    is_head: bool
    cpus: Use
    """What jobs hold of those that Ray gives away."""
    gpus: Use
    cpu_percent: float | None
    """How busy its CPUs are, whoever runs there; None in the first seconds of a machine."""
    memory_bytes: Use | None
    object_store_bytes: Use
    devices: tuple[Gpu, ...]
    workers: int
    """Training workers on it."""


@dataclass(frozen=True)
class WatchedJob:
    """A job, what its log last said, and its training workers at this moment; None where Ray does not know them."""

    job: Job
    progress: JobProgress | None
    workers: int | None

    @property
    def trains(self) -> bool:
        """Whether its workers are there and take steps, so that the rates of its log are of now."""
        stands = self.progress is None or self.progress.phase == "validating" or self.workers == 0
        return self.job.at_work and not stands


@dataclass(frozen=True)
class ClusterView:
    """All that was read at one moment; jobs that run first, then those that wait, then those that ended last."""

    jobs: tuple[WatchedJob, ...]
    machines: tuple[MachineUse, ...]
    left_out: int
    """Jobs that ended before those."""

    @property
    def images_per_s(self) -> float:
        """Of all runs that train now; sweeps do not say theirs."""
        rates = (watched.progress.images_per_s for watched in self.jobs if watched.trains and watched.progress)
        return sum(rate for rate in rates if rate is not None)


class ClusterWatch:
    """Reads a cluster again and again; what has ended is read once."""

    def __init__(self, address: str) -> None:
        self._jobs = Jobs(address)
        self.address = address
        self._ended: dict[str, JobProgress | None] = {}

    def read(self, *, ended: int) -> ClusterView:
        """How the cluster is now, with so many of the jobs that have ended.

        Raises:
            ClusterUnreachableError: nothing answers, or the token is refused.
        """
        jobs = self._jobs.all()
        shown = _shown_first(jobs, ended)
        with explained(self.address):
            actors = self._get("api/v0/actors", _of_class(_TRAIN_WORKER))["result"]["result"]
            nodes = self._get("nodes", {"view": "summary"})
            progress = self._progress(shown)
        by_job, by_node = (Counter(actor[key] for actor in actors) for key in ("job_id", "node_id"))
        return ClusterView(
            tuple(WatchedJob(job, progress[job.id], by_job[job.ray_job] if job.ray_job else None) for job in shown),
            machines_in_use(nodes, by_node),
            len(jobs) - len(shown),
        )

    def _progress(self, jobs: Iterable[Job]) -> dict[str, JobProgress | None]:
        jobs = list(jobs)
        asked = [job for job in jobs if job.at_work or not (job.live or job.id in self._ended)]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            found = dict(zip((job.id for job in asked), pool.map(self._read_log, asked), strict=True))
        self._ended |= {job.id: found[job.id] for job in asked if not job.live}
        return {job.id: found.get(job.id, self._ended.get(job.id)) for job in jobs}

    def _read_log(self, job: Job) -> JobProgress | None:
        if job.machine is None:
            return None
        # By the job's id alone Ray (2.60) answers with an error.
        place = {"node_id": job.machine, "filename": f"job-driver-{job.id}.log", "lines": str(_LOG_LINES)}
        answer = self._request("api/v0/logs/file", list(place.items()))
        # A log that is not there yet, or whose machine is gone, is an error of the server's.
        return read_progress(answer.text) if answer.ok else None

    def _get(self, path: str, query: Mapping[str, str] | Sequence[tuple[str, str]]) -> Any:
        answer = self._request(path, list(query.items()) if isinstance(query, Mapping) else query)
        answer.raise_for_status()
        return answer.json()["data"]

    def _request(self, path: str, query: Sequence[tuple[str, str]]) -> requests.Response:
        url = f"{self.address}/{path}"
        return requests.get(url, params=list(query), headers=token_header(), timeout=_TIMEOUT_S)


def machines_in_use(nodes: Mapping[str, Any], workers: Mapping[str, int]) -> tuple[MachineUse, ...]:
    """The machines that are alive, the head first: from the dashboard's `/nodes?view=summary`, and how many training
    workers each has, by Ray's ids of machines.
    """
    alive = [node for node in nodes["summary"] if node["raylet"].get("state") == "ALIVE"]
    machines = []
    for node in sorted(alive, key=lambda node: (not node["raylet"].get("isHeadNode"), node["raylet"]["nodeName"])):
        raylet = node["raylet"]
        # Until the autoscaler has seen a machine, nothing on it is in use.
        taken = {unit: float(used) for used, _, unit in _USE.findall(_held(nodes, raylet["nodeId"]))}
        given = raylet.get("resourcesTotal", {})
        store_used = raylet.get("objectStoreUsedMemory", 0)
        machines.append(
            MachineUse(
                name=raylet["nodeName"],
                is_head=bool(raylet.get("isHeadNode")),
                cpus=Use(taken.get("CPU", 0.0), given.get("CPU", 0.0)),
                gpus=Use(taken.get("GPU", 0.0), given.get("GPU", 0.0)),
                cpu_percent=node.get("cpu"),
                memory_bytes=Use(node["mem"][3], node["mem"][0]) if node.get("mem") else None,
                object_store_bytes=Use(store_used, store_used + raylet.get("objectStoreAvailableMemory", 0)),
                devices=tuple(map(_gpu, node.get("gpus") or [])),
                workers=workers.get(raylet["nodeId"], 0),
            )
        )
    return tuple(machines)


def _held(nodes: Mapping[str, Any], node_id: str) -> str:
    """Lines such as `2.0/3.0 CPU (2.0 used of 2.0 reserved in placement groups)`."""
    return str((nodes.get("nodeLogicalResources") or {}).get(node_id, ""))


def _gpu(device: Mapping[str, Any]) -> Gpu:
    return Gpu(device["name"], device.get("utilizationGpu"), Use(device["memoryUsed"], device["memoryTotal"]))


def _of_class(name: str) -> list[tuple[str, str]]:
    """A query for the actors of a class that are alive."""
    query = [("limit", "10000")]
    for key, value in (("class_name", name), ("state", "ALIVE")):
        query += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
    return query


def _shown_first(jobs: Sequence[Job], ended: int) -> list[Job]:
    """Those that run, those that wait, and so many that ended; each newest first, as they are given."""
    running = [job for job in jobs if job.at_work]
    waiting = [job for job in jobs if job.live and not job.at_work]
    return [*running, *waiting, *islice((job for job in jobs if not job.live), ended)]
