"""Machines as the dashboard tells of them: keys by Ray's own naming, resources by Ray's own words for them."""

from typing import Any

import pytest
from ray.autoscaler._private.util import parse_usage
from ray.dashboard.modules.reporter.gpu_providers import GpuUtilizationInfo
from ray.dashboard.utils import to_google_style

from vitrail.cluster.watching.view import Gpu, Use, machines_in_use

GIB = 2**30


def gpu(index: int, busy: int | None) -> GpuUtilizationInfo:
    return GpuUtilizationInfo(
        index=index,
        name="NVIDIA A10G",
        uuid=f"GPU-{index}",
        utilization_gpu=busy,
        memory_used=18_000,
        memory_total=23_028,
        processes_pids=None,
    )


def node(name: str, *, state: str = "ALIVE", head: bool = False, **stats: Any) -> dict[str, Any]:
    raylet = {
        "nodeId": f"id of {name}",
        "nodeName": name,
        "state": state,
        "isHeadNode": head,
        "resourcesTotal": {"CPU": 48.0, "memory": 1e11, **({"GPU": 2.0} if stats.get("gpus") else {})},
        "objectStoreUsedMemory": GIB,
        "objectStoreAvailableMemory": 3 * GIB,
    }
    return {"raylet": raylet, **stats}


def answer(*nodes: dict[str, Any], **held: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """As the dashboard answers; of the machines named, what is held of each resource, and its total."""
    told = {f"id of {name}": "\n".join(parse_usage(usage, verbose=True)) for name, usage in held.items()}
    found: dict[str, Any] = to_google_style({"summary": list(nodes)})
    return {**found, "nodeLogicalResources": told}


def test_machine_with_gpus_is_read_whole() -> None:
    stats = {"cpu": 71.3, "mem": [186 * GIB, 125 * GIB, 32.8, 61 * GIB], "gpus": [gpu(0, 97), gpu(1, None)]}
    # A placement group holds both GPUs, and workers run in one of its two places.
    group = "0" * 32
    usage = {"CPU": (40.0, 48.0), "GPU": (2.0, 2.0), f"GPU_group_{group}": (1.0, 2.0), "memory": (0.0, 1e11)}
    (machine,) = machines_in_use(answer(node("a", **stats), a=usage), {"id of a": 2})
    assert machine.gpus == Use(1.0, 2.0)
    assert machine.cpus == Use(40.0, 48.0)
    assert machine.memory_bytes == Use(61 * GIB, 186 * GIB)
    assert machine.object_store_bytes == Use(GIB, 4 * GIB)
    assert machine.devices == tuple(Gpu("NVIDIA A10G", busy, Use(18_000, 23_028)) for busy in (97, None))
    assert machine.cpu_percent == pytest.approx(71.3) and machine.workers == 2


def test_machine_that_has_only_just_come_holds_nothing() -> None:
    (machine,) = machines_in_use(answer(node("a")), {})
    assert machine.cpus == Use(0.0, 48.0) and machine.gpus == Use(0.0, 0.0)
    assert machine.cpu_percent is None and machine.memory_bytes is None and machine.devices == ()


def test_machines_that_are_gone_are_not_shown_and_the_head_comes_first() -> None:
    nodes = [node("a"), node("b", state="DEAD"), node("c", head=True)]
    assert [machine.name for machine in machines_in_use(answer(*nodes), {})] == ["c", "a"]
