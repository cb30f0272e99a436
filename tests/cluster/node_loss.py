"""Runs that gain and lose machines, on a cluster of several nodes on this machine.

    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 uv run --no-sync python tests/cluster/node_loss.py gain_and_lose DATA FOLDER

Prints what was seen as JSON on its last line. In a process of its own, because a process has one Ray.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.launch import plan_run
from vitrail.cluster.recovery import look_afresh
from vitrail.cluster.reporting import THROUGHPUT
from vitrail.cluster.runtime import HEALTH_CHECKS, ray_cluster
from vitrail.cluster.trainer import TrainResult, train
from vitrail.config import RunConfig
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.training.continuity import Continuity
from vitrail.training.watchdog import STALLS, stall_file

TINY = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
TINY += ["model.backbone.img_size=64", "total_steps=400", "val_interval=400"]
DEADLINE_S = 30
TIMEOUT_S = 110


def gain_and_lose(data: Path, folder: Path, *, silent: bool) -> dict[str, Any]:
    """A run with one worker grows when a second machine comes, and goes on with that alone when the first is lost."""
    with Machines.head() as machines:
        first = machines.add()
        config = plan(data, folder, save_interval_s=2.0)
        run = start(config)
        wait_until(lambda: newest(config) > 0, run)
        machines.add()
        look_afresh()
        wait_until(lambda: stall_file(Path(config.folder) / STALLS, 1).exists(), run)  # there is a rank 1
        wait_until(lambda: continuity(config).restarts == 1, run)
        before, lost_at = continuity(config), time.time()
        machines.lose(first, silent=silent)
        wait_until(lambda: continuity(config).restarts == 2, run)
        after = continuity(config)
        seen = {"resize_s": before.lost_s, "recovery_s": after.at_s - lost_at}
        return seen | end_of(config, run)


def preempt(data: Path, folder: Path) -> dict[str, Any]:
    """A machine is announced to be taken away, and is, as soon as a checkpoint was made."""
    with Machines.head() as machines:
        first = machines.add()
        machines.add()
        config = plan(data, folder, save_interval_s=900.0)
        run = start(config)
        wait_until(lambda: continuity(config).step > 0, run)
        announced_at = time.time()
        machines.announce_preemption(first)
        wait_until(lambda: newest(config) > 0, run)
        lost_at, saved_step = time.time(), newest(config)
        machines.lose(first, silent=False)
        wait_until(lambda: continuity(config).restarts == 1, run)
        seen = {"saved_step": saved_step, "saved_s": lost_at - announced_at, "deadline_s": DEADLINE_S}
        return seen | {"recovery_s": continuity(config).at_s - lost_at} | end_of(config, run)


def plan(data: Path, folder: Path, *, save_interval_s: float) -> RunConfig:
    """A run with two workers, or one while there is no room for two."""
    recipe = override(get_recipe("upernet_vit-nano_mln_128x128_1k"), TINY)
    config = plan_run(
        recipe, data, root=folder, name="run", workers=2, min_workers=1, max_failures=1, save_interval_s=save_interval_s
    )
    return config.model_copy(update={"tracking": None, "resize_interval_s": 1.0, "cpus_per_worker": 1})


class Machines:
    """A cluster whose head trains nothing, with machines of one CPU, which this process has joined."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopped: list[psutil.Process] = []

    @classmethod
    @contextmanager
    def head(cls) -> Iterator["Machines"]:
        """A cluster without a machine to train on; all its processes are gone at the end."""
        os.environ.update(HEALTH_CHECKS)
        machines = cls(Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
        try:
            with ray_cluster(machines._cluster.address):
                yield machines
        finally:
            machines._close()

    def add(self) -> Any:
        """A new machine."""
        return self._cluster.add_node(num_cpus=1)

    def lose(self, node: Any, *, silent: bool) -> None:
        """Take a machine away: its connections stay open and nothing answers, or they are closed."""
        (raylet,) = node.all_processes["raylet"]
        root = psutil.Process(raylet.process.pid)
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        self._stopped += processes
        if not silent:
            self._kill_stopped()

    def announce_preemption(self, node: Any) -> None:
        """What `ray drain-node` does, and a cloud's notice of preemption comes to."""
        client = ray._raylet.GcsClient(address=self._cluster.address)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why_not = client.drain_node(node.node_id, reason, "", int((time.time() + DEADLINE_S) * 1000))
        assert accepted, why_not

    def _kill_stopped(self) -> None:
        for process in self._stopped:
            if process.is_running():
                process.kill()

    def _close(self) -> None:
        self._kill_stopped()
        try:
            self._cluster.shutdown()
        except ValueError:  # a run that was given up has joined once more, and is put out by this very error
            self._cluster.shutdown()


def start(config: RunConfig) -> "Future[TrainResult]":
    """Train beside what follows."""
    run: Future[TrainResult] = Future()

    def work() -> None:
        try:
            run.set_result(train(config, show=False))
        except BaseException as error:
            run.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return run


def wait_until(happens: Callable[[], object], run: "Future[TrainResult]") -> None:
    """Return when it happens, which is while the run goes on."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happens():
        assert not run.done(), run.result()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def continuity(config: RunConfig) -> Continuity:
    """How far the run has come, and what restarts have cost it."""
    return Continuity.load(Path(config.folder))


def newest(config: RunConfig) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    found = CheckpointStore.at(config.checkpoints).newest()
    return 0 if found is None else found.info.step


def end_of(config: RunConfig, run: "Future[TrainResult]") -> dict[str, Any]:
    """How the run ended."""
    last = run.result(TIMEOUT_S).last_info
    card = json.loads((Path(config.folder) / THROUGHPUT).read_text())
    return {"step": last.step, "total_steps": config.recipe.total_steps} | {
        name: card[name] for name in ("workers", "restarts", "lost_to_restarts_s")
    }


SCENARIOS = {
    "gain_and_lose": partial(gain_and_lose, silent=True),
    "gain_and_lose_with_closed_connections": partial(gain_and_lose, silent=False),
    "preempt": preempt,
}

if __name__ == "__main__":
    scenario, data, folder = sys.argv[1:]
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths must be short
    try:
        print(json.dumps(SCENARIOS[scenario](Path(data), Path(folder))))
    finally:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
