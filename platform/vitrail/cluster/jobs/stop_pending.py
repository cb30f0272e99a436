"""End a job that has not begun, on the head: `python -c SOURCE JOB_ID`, the source being this file.

Ray's own stop is a message to the job's supervisor, which for a job that waits does not run yet (ray 2.60): it answers
that it has stopped the job, and the job goes on waiting. Imports nothing of ours, since nodes may have only Ray.
"""

import asyncio
import sys

import ray
from ray.dashboard.modules.job.common import (
    JOB_ACTOR_NAME_TEMPLATE,
    SUPERVISOR_ACTOR_RAY_NAMESPACE,
    JobInfoStorageClient,
    JobStatus,
)


def stop_pending(job_id: str) -> None:
    """Mark the job as stopped, and then take away what waits, whose end would otherwise count as a failure."""
    ray.init(log_to_driver=False)
    table = JobInfoStorageClient(ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address))
    asyncio.run(table.put_status(job_id, JobStatus.STOPPED, message="stopped before it began"))
    supervisor = JOB_ACTOR_NAME_TEMPLATE.format(job_id=job_id)
    ray.kill(ray.get_actor(supervisor, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE))


if __name__ == "__main__":
    stop_pending(sys.argv[1])
