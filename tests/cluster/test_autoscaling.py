"""A cluster that grows for a job and shrinks after it: our node types, a size down, started by Ray's own autoscaler.

Its fake provider starts machines as processes of this one; everything else is as on a cloud.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from head import Head, free_ports, start_head
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cluster.capacity import CLUSTER_VARIABLE

ROOT = Path(__file__).parents[2]
HEAD_TYPE, HEAD_ID = "ray.head.default", f"{'f' * 51}00000"
"""As the fake provider calls the head."""
SMALL = {"gpu": {"CPU": 3, "GPU": 1}, "data": {"CPU": 1}}
"""What stands for machines of 48 CPUs and 4 GPUs, and of 16 CPUs."""
IDLE_S = 6


@pytest.fixture
def launcher_file(tmp_path: Path) -> Path:
    """cluster.yaml with smaller machines from the fake provider, which are idle for a shorter time."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]
    assert {name for name in types if name != config["head_node_type"]} == set(SMALL)
    for name, node in types.items():
        node.update(node_config={}, resources=SMALL.get(name, node["resources"]))
    types[HEAD_TYPE] = types.pop(config["head_node_type"])
    (port,) = free_ports(1)
    kept = {name: config[name] for name in ("cluster_name", "max_workers", "upscaling_speed", "available_node_types")}
    provider = {"type": "external", "module": "processes_as_machines.ProcessProvider", "launch_multiple": True}
    provider |= {"gcs_address": f"127.0.0.1:{port}", "head_node_id": HEAD_ID}
    made = {**kept, "provider": provider, "head_node_type": HEAD_TYPE, "idle_timeout_minutes": IDLE_S / 60}
    path = tmp_path / "cluster.yaml"
    commands = {name: [] for name in config if name.endswith("_commands")} | {"worker_setup_commands": []}
    path.write_text(
        json.dumps({**made, **commands, "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": []})
    )
    return path


@pytest.fixture
def head(launcher_file: Path, tmp_path: Path) -> Iterator[Head]:
    """That cluster's head, which has no CPU."""
    port = json.loads(launcher_file.read_text())["provider"]["gcs_address"].rpartition(":")[2]
    environment = {CLUSTER_VARIABLE: str(launcher_file), "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), HEAD_ID)
    environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": HEAD_TYPE}
    environment["PYTHONPATH"] = str(Path(__file__).parent)  # where the provider is
    options = [f"--port={port}", f"--autoscaling-config={launcher_file}", "--labels=vitrail-cluster=vitrail"]
    with start_head(tmp_path, *options, "--num-gpus=0", num_cpus=0, environment=environment) as started:
        yield started


@pytest.mark.long
def test_machines_are_started_for_a_job_and_given_back_after_it(
    tiny_data: Path, launcher_file: Path, head: Head
) -> None:
    before = wait_for_machines(head, lambda found: len(found) == 1)
    assert set(before) == {HEAD_ID}
    changes = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
    changes += ["model.backbone.img_size=64", "val_interval=10"]
    script = [ROOT / "jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--data", tiny_data, "--steps", 10]
    script += [part for change in changes for part in ("--set", change)]
    sent = ["submit", "--cluster", launcher_file, *script]
    # Not even when it is grown: eight machines with three CPUs, and four with one.
    code, output = run(head, *sent, "--workers", 29)
    assert code == 2
    assert "do not fit on this cluster, which has 28 CPUs and 8 GPUs" in output

    code, output = run(head, *sent, "--follow", "--name", "growing", "--workers", 2)
    assert code == 0, output
    assert "growing: SUCCEEDED" in output
    workers = {actor["node_id"] for actor in listed(head, "actors") if "RayTrainWorker" in actor["class_name"]}
    grown = {node["node_id"]: node for node in listed(head, "nodes") if node["node_id"] != HEAD_ID}
    assert len(workers) == 2 and workers <= set(grown)
    # The smallest that hold them: machines with GPUs are left for those who need some.
    assert [grown[node]["resources_total"]["CPU"] for node in workers] == [1.0, 1.0]
    assert not any("GPU" in node["resources_total"] for node in grown.values())
    wait_for_machines(head, lambda found: len(found) == 1)


def run(head: Head, *arguments: Any) -> tuple[int, str]:
    """A `vitrail` command of somebody who has the token: exit code, and all output."""
    settings = {**head.environment(), "RAY_ADDRESS": None, "MLFLOW_TRACKING_URI": None, "COLUMNS": "300"}
    result = CliRunner().invoke(app, list(map(str, arguments)), env=settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def wait_for_machines(head: Head, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The machines that are alive, by id, once they are right; fails with the autoscaler's words if they never are."""
    deadline = time.monotonic() + 120
    while not right(found := {node["node_id"]: node for node in listed(head, "nodes") if node["state"] == "ALIVE"}):
        assert time.monotonic() < deadline, (found, answer(head, "cluster_status").text)
        time.sleep(0.5)
    return found


def listed(head: Head, what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer(head, f"v0/{what}?detail=1&limit=1000").json()["data"]["result"]["result"]
    return found


def answer(head: Head, path: str) -> requests.Response:
    reply = requests.get(f"{head.address}/api/{path}", headers={"Authorization": f"Bearer {head.token}"}, timeout=30)
    reply.raise_for_status()
    return reply
