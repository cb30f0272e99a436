"""The runs in MLflow that a job on a cluster has made, found by the tag that each of them carries."""

from dataclasses import dataclass

from vitrail.tracking.environment import JOB_TAG, connect, retry
from vitrail.tracking.store import is_http

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class JobRun:
    """A run, and the address of its page where a server shows one."""

    name: str
    status: str
    run_id: str
    url: str | None


def runs_of_job(tracking_uri: str, job_id: str) -> list[JobRun]:
    """The runs that a job has made, the first first: for a sweep, its parent run.

    Raises:
        TrackingError: MLflow does not answer.
    """
    client = connect(tracking_uri)

    def search() -> list[JobRun]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(
            experiments, f"tags.`{JOB_TAG}` = '{job_id}'", order_by=["attributes.start_time ASC"]
        )
        return [
            JobRun(
                run.info.run_name,
                run.info.status,
                run.info.run_id,
                run_page(tracking_uri, run.info.experiment_id, run.info.run_id),
            )
            for run in found
        ]

    return retry(search, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)


def run_page(tracking_uri: str, experiment_id: str | None, run_id: str) -> str | None:
    """Address of a run's page; None for a local store (see `vitrail ui`)."""
    if not is_http(tracking_uri):
        return None
    # Without the parameter, MLflow 3.17 opens its pages for language models.
    return f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
