"""timm's pretrained weights by name, from the hub's cache or the hub."""

from pathlib import Path
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.models import get_pretrained_cfg

from vitrail.errors import UnknownNameError, UsageError

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


def download(name: str) -> Path:
    """The file of timm's weights called `name`; the hub is asked only for what its cache has not.

    Raises:
        UnknownNameError: timm has no weights of that name.
        PretrainedUnavailableError: they are not in the cache, and the hub is out of reach.
    """
    config = get_pretrained_cfg(name) if name.split(".")[0] in timm.list_models() else None
    if config is None or not config.hf_hub_id:
        known = (n for n in timm.list_pretrained() if n.startswith(("vit_", "deit_")))
        raise UnknownNameError("file or timm name of pretrained weights", name, known)
    repository = str(config.hf_hub_id)
    try:
        return Path(hf_hub_download(repository, _FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        _reach(name, repository)
    try:
        return Path(hf_hub_download(repository, _FILE))
    except (HfHubHTTPError, OSError) as error:
        raise PretrainedUnavailableError(name, repository, type(error).__name__) from error


def _reach(name: str, repository: str) -> None:
    """Ask the hub once: its own client tries for a minute before it gives up."""
    if constants.HF_HUB_OFFLINE:
        raise PretrainedUnavailableError(name, repository, "HF_HUB_OFFLINE is set")
    request = Request(hf_hub_url(repository, _FILE), method="HEAD")
    try:
        urlopen(request, timeout=10).close()
    except OSError as error:
        raise PretrainedUnavailableError(name, repository, str(error)) from error
