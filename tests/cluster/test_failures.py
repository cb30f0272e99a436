"""What ends a run on a worker, each in words of its own, and a store that outlives the machine."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from killing import kill_with_all_its_processes, start_job, step_of, wait_until, workers_of
from s3_server import s3_server
from test_survival import TINY
from test_trainer import tiny

from vitrail.checkpoint import CheckpointWriteError
from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.launch import plan_run
from vitrail.cluster.run_errors import StalledError
from vitrail.cluster.trainer import train
from vitrail.config import RunConfig
from vitrail.training.finite import NonFiniteError

pytestmark = pytest.mark.long


def plan(data: Path, root: Path, **changes: object) -> RunConfig:
    """A run of one worker, without MLflow."""
    recipe = tiny(**{name: value for name, value in changes.items() if "." in name or name == "total_steps"})
    changes = {name: value for name, value in changes.items() if "." not in name and name != "total_steps"}
    config = plan_run(recipe, data, root=root, name="run")
    return config.model_copy(update={"tracking": None, "cpus_per_worker": 1, **changes})


def test_loss_that_is_not_finite_stops_the_run_and_names_the_samples(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    # The first step is taken at nearly nothing; the second throws the weights out of what float32 holds.
    config = plan(tiny_data, tmp_path, **{"schedule.peak_lr": 1e30, "max_skipped_steps": 1, "total_steps": 30})
    with pytest.raises(NonFiniteError) as caught:
        train(config, show=False)
    assert caught.value.allowed == 1 < caught.value.skipped
    assert len(caught.value.ids) == 4
    assert "schedule.peak_lr" in str(caught.value)


@contextmanager
def frozen_once(happens: Callable[[], object]) -> Iterator[None]:
    """One of this process's training workers is stopped when `happens` is true, and killed in the end."""
    frozen: list[psutil.Process] = []
    over = threading.Event()

    def freeze() -> None:
        while not happens():
            if over.wait(0.02):
                return
        frozen.append(workers_of(os.getpid())[0])
        frozen[0].suspend()

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.nightly
def test_worker_that_hangs_is_named_with_its_stack(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    # A worker that waits for another, which has stopped without a word.
    config = plan(tiny_data, tmp_path, stall_timeout_s=20.0, total_steps=2000, workers=2)
    says = r"made no step for 20 s: rank \d hung at step \d+: \w+"
    with frozen_once(lambda: step_of(Path(config.folder)) > 0), pytest.raises(StalledError, match=says) as caught:
        train(config, show=False)
    assert "train_worker" in str(caught.value)
    assert "--resume continues it" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds two checkpoints and not three."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=90m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_said_and_the_last_checkpoint_stays_good(
    ray_session: None, tiny_data: Path, tmp_path: Path, small_disk: Path
) -> None:
    config = plan(tiny_data, tmp_path, keep_newest=9, checkpoint_root=str(small_disk), total_steps=8)
    with pytest.raises(CheckpointWriteError, match=r"No space left on device.*the last good one, is untouched"):
        train(config, show=False)
    kept = CheckpointStore.at(small_disk).newest()
    assert kept is not None
    assert kept.info.step in (2, 4)
    assert not list(small_disk.glob(".writing*"))


def test_run_keeps_its_checkpoints_in_a_store_and_another_machine_goes_on_from_there(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        for name, value in {**server.environment, "VITRAIL_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="runs")
        place = f"s3://runs/all{server.query}"
        command = [
            "upernet_vit-nano_mln_128x128_1k",
            "--data",
            tiny_data,
            "--name",
            "run",
            "--checkpoints",
            place,
            "--save-interval",
            3,
        ]
        command += [argument for change in (*TINY, "total_steps=400") for argument in ("--set", change)]
        log = tmp_path / "log"
        store = CheckpointStore.at(f"s3://runs/all/run{server.query}")

        job = start_job(*command, "--root", tmp_path / "one", log=log)
        wait_until(store.checkpoints, job, log)
        kill_with_all_its_processes(job)
        saved = store.newest()
        assert saved is not None

        job = start_job(*command, "--root", tmp_path / "two", log=log)
        wait_until(lambda: step_of(tmp_path / "two" / "run") > saved.info.step, job, log)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=120) == 1
        assert "was stopped after step" in log.read_text()
        last = store.newest()
        assert last is not None
        assert last.info.step > saved.info.step

        code = start_job(*command, "--root", tmp_path / "three", "--seed", 1, log=log).wait(timeout=120)
        assert code == 2
        assert "holds checkpoints of another run: seed is 0 there and 1 here" in log.read_text()
