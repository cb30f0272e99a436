"""Weights in the hub and its cache, by repository. Needs neither torch nor timm."""

from pathlib import Path
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from vitrail.errors import UsageError

_FILE = "model.safetensors"


class PretrainedUnavailableError(UsageError):
    """Weights by name that are neither in the cache nor to be had from the hub."""

    def __init__(self, name: str, repository: str, reason: str) -> None:
        super().__init__(name, repository, reason)
        self.name, self.repository, self.reason = name, repository, reason

    def __str__(self) -> str:
        return (
            f"the weights {self.name!r} are not in the hub cache and {self.repository} cannot be reached "
            f"({self.reason}); pass a file instead (timm, DeiT, JAX or mmsegmentation), or none for random weights"
        )


def download_weights(name: str, repository: str) -> Path:
    """The file of the weights called `name`; the hub is asked only for what its cache has not.

    Raises:
        PretrainedUnavailableError: they are not in the cache, and the hub is out of reach.
    """
    cached = _cached(repository)
    if cached is not None:
        return cached
    _reach(name, repository)
    try:
        return Path(hf_hub_download(repository, _FILE))
    except (HfHubHTTPError, OSError) as error:
        raise PretrainedUnavailableError(name, repository, type(error).__name__) from error


def check_available(name: str, repository: str) -> None:
    """Raise `PretrainedUnavailableError` unless `download_weights` would find something; nothing is downloaded."""
    if _cached(repository) is None:
        _reach(name, repository)


def _cached(repository: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, _FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _reach(name: str, repository: str) -> None:
    """Ask the hub once: its own client tries for a minute before it gives up."""
    if constants.HF_HUB_OFFLINE:
        raise PretrainedUnavailableError(name, repository, "HF_HUB_OFFLINE is set")
    request = Request(hf_hub_url(repository, _FILE), method="HEAD")
    try:
        urlopen(request, timeout=10).close()
    except OSError as error:
        raise PretrainedUnavailableError(name, repository, str(error)) from error
