"""timm's pretrained weights by name, from the hub's cache or the hub."""

from pathlib import Path

import timm
from timm.models import get_pretrained_cfg

from vitrail.errors import UnknownNameError
from vitrail.models.hub_files import PretrainedUnavailableError, download_weights

__all__ = ["PretrainedUnavailableError", "download", "repository_of"]


def download(name: str) -> Path:
    """The file of timm's weights called `name`; the hub is asked only for what its cache has not.

    Raises:
        UnknownNameError: timm has no weights of that name.
        PretrainedUnavailableError: they are not in the cache, and the hub is out of reach.
    """
    return download_weights(name, repository_of(name))


def repository_of(name: str) -> str:
    """The hub's repository of timm's weights called `name`; raises `UnknownNameError` if there are none."""
    config = get_pretrained_cfg(name) if name.split(".")[0] in timm.list_models() else None
    if config is None or not config.hf_hub_id:
        known = (n for n in timm.list_pretrained() if n.startswith(("vit_", "deit_")))
        raise UnknownNameError("file or timm name of pretrained weights", name, known)
    return str(config.hf_hub_id)
