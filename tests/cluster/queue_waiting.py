"""Waiting for what a cluster says of its jobs."""

import time
from collections.abc import Callable

from job_cluster import Cluster


def until(happens: Callable[[], bool], timeout_s: float = 120) -> None:
    """Return when it happens; fail if time is over."""
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def status(cluster: Cluster, name: str) -> str:
    """What `vitrail status` prints of a job."""
    return cluster.run("status", name)[1]
