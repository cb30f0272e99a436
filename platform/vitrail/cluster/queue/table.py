"""Ray's table of jobs, from inside the cluster, where it can be written: through parts of ray 2.60 that are private.

A job's notes are all that its process can tell to those who only reach the dashboard.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX
from ray.dashboard.modules.job.common import JOB_LOGS_PATH_TEMPLATE, JobInfo, JobInfoStorageClient, JobStatus

from vitrail.cluster.capacity import startable_machines

_ALIVE = 0
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Head:
    """The cluster's head, as others find it."""

    node_id: str
    logs: Path
    agent_address: str


class JobTable:
    """The jobs of the cluster whose GCS is at an address, such as `RAY_ADDRESS` says inside of a job."""

    def __init__(self, address: str) -> None:
        self._gcs = ray._raylet.GcsClient(address=address)
        self._jobs = JobInfoStorageClient(self._gcs)

    def info(self, job_id: str) -> JobInfo | None:
        """What Ray knows of a job; None if it does not know it."""
        found: JobInfo | None = asyncio.run(self._jobs.get_info(job_id, timeout=_TIMEOUT_S))
        return found

    def note(self, job_id: str, notes: Mapping[str, str], *, message: str) -> None:
        """Add notes to those of a job that runs in Ray's eyes, and say how it stands; nothing if it has ended."""
        info = self.info(job_id)
        if info is None or info.status.is_terminal():
            return
        changed = replace(info, metadata={**(info.metadata or {}), **notes}, message=message)
        asyncio.run(self._jobs.put_info(job_id, changed, timeout=_TIMEOUT_S))

    def add_ended(
        self,
        job_id: str,
        *,
        status: str,
        entrypoint: str,
        notes: Mapping[str, str],
        times: tuple[float, float],
        log: str,
        exit_status: int | None,
    ) -> None:
        """Enter a job of an earlier head, with its log, so that all who ask this one see it."""
        head = self.head()
        (head.logs / JOB_LOGS_PATH_TEMPLATE.format(submission_id=job_id)).write_text(log)
        info = JobInfo(
            status=JobStatus(status),
            entrypoint=entrypoint,
            message="of an earlier head",
            start_time=int(1000 * times[0]),
            end_time=int(1000 * times[1]),
            metadata=dict(notes),
            driver_agent_http_address=head.agent_address,
            driver_node_id=head.node_id,
            driver_exit_code=exit_status,
        )
        asyncio.run(self._jobs.put_info(job_id, info, overwrite=False, timeout=_TIMEOUT_S))

    def dashboard(self) -> str:
        """Where the Jobs API is."""
        return f"http://{self._noted(ray_constants.DASHBOARD_ADDRESS)}"

    def machines(self) -> list[dict[str, float]]:
        """The resources of the machines that Ray may start, or else of those alive."""
        return startable_machines() or [dict(node.resources_total) for node in self._nodes()]

    def head(self) -> Head:
        """The head."""
        (node,) = [node for node in self._nodes() if node.is_head_node]
        node_id = node.node_id.hex()
        ip, port, _ = json.loads(self._noted(f"{DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX}{node_id}"))
        return Head(node_id, Path(node.session_dir) / "logs", f"http://{ip}:{port}")

    def _nodes(self) -> list[Any]:
        return [node for node in self._gcs.get_all_node_info(timeout=_TIMEOUT_S).values() if node.state == _ALIVE]

    def _noted(self, key: str) -> str:
        space = ray_constants.KV_NAMESPACE_DASHBOARD
        found: bytes = self._gcs.internal_kv_get(key.encode(), namespace=space, timeout=_TIMEOUT_S)
        return found.decode()
