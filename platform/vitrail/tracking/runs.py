"""Reads back what runs have logged."""

from vitrail.tracking.environment import connect, retry

_TIMEOUT_S = 30.0


def metric_history(tracking_uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """Every (step, value) that a run logged under `key`, in order of steps.

    Raises:
        TrackingError: MLflow does not answer.
    """
    client = connect(tracking_uri)
    history = retry(lambda: client.get_metric_history(run_id, key), tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    return sorted((metric.step, metric.value) for metric in history)
