"""Where the workers of a run meet: on one machine's Ray, torch too listens on the loopback address alone."""

import importlib
import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_LOOPBACK = "127.0.0.1"


class MeetingConfig(TorchConfig):  # type: ignore[misc]
    """Ray's `TorchConfig`, whose store of addresses, on a Ray of the loopback address, is closed to other machines.

    torch makes that store on every address of the machine, and whoever reaches it may write into it.
    """

    @property
    def backend_cls(self) -> Any:
        """What Ray sets up torch with."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_stay_on_loopback)
        super().on_start(worker_group, backend_config)


def _stay_on_loopback() -> None:
    """Have this worker meet the others on the loopback address, if that is the one that its Ray has."""
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    # The package has a function of the module's name.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    rendezvous._create_c10d_store = _store
    interface = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface is not None:
            os.environ.setdefault(variable, interface)


def _store(hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True) -> Any:
    """As torch's function of that place: rank 0 makes the store, the others find it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    options: dict[str, Any] = {"timeout": timeout, "use_libuv": use_libuv}
    if rank == 0:
        options |= {"multi_tenant": True, "master_listen_fd": socket.create_server((hostname, port)).detach()}
    return TCPStore(hostname, port, world_size, rank == 0, **options)
