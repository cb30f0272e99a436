"""Whether MLflow answers a machine, and takes its credentials."""

import requests

from vitrail.tracking.environment import TrackingError, connect, retry
from vitrail.tracking.store import is_http

_TIMEOUT_S = 5.0


class TrackingRefusedError(TrackingError):
    """MLflow answers, and does not let this machine in."""


def check_reachable(tracking_uri: str) -> None:
    """Ask a server for one experiment; a local store is not asked, since that would make it.

    Raises:
        TrackingRefusedError: it wants other credentials than this machine has, or any.
        TrackingError: nothing answers there.
    """
    if not is_http(tracking_uri):
        return
    try:
        requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=_TIMEOUT_S)  # gives up sooner than MLflow's client
    except requests.RequestException as error:
        raise TrackingError(tracking_uri, f"nothing answers ({type(error).__name__})") from None
    client = connect(tracking_uri)
    try:
        retry(lambda: client.search_experiments(max_results=1), tracking_uri=tracking_uri, timeout_s=0.0)
    except TrackingError as error:
        status = getattr(error.__cause__, "get_http_status_code", lambda: None)()
        if status in (401, 403):
            raise TrackingRefusedError(tracking_uri, error.reason) from None
        raise
