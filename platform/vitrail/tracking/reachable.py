"""Whether MLflow answers a machine, and takes its credentials."""

import requests

from vitrail.tracking.environment import TrackingError, connect, retry
from vitrail.tracking.store import is_http

_TIMEOUT_S = 5.0


def check_reachable(tracking_uri: str) -> None:
    """Ask a server for one experiment; a local store is not asked, since that would make it.

    Raises:
        TrackingError: nothing answers there, or it refuses this machine.
    """
    if not is_http(tracking_uri):
        return
    try:
        requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=_TIMEOUT_S)  # gives up sooner than MLflow's client
    except requests.RequestException as error:
        raise TrackingError(tracking_uri, f"nothing answers ({type(error).__name__})") from None
    client = connect(tracking_uri)
    retry(lambda: client.search_experiments(max_results=1), tracking_uri=tracking_uri, timeout_s=0.0)
