"""A Ray that is started here is closed: nobody on the network reaches it or its workers, or reads its token."""

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from head import end_with_children

from vitrail.cluster.loopback import keep_token_private

ROOT = Path(__file__).parents[2]
SIZES = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
SIZES += ["model.backbone.img_size=64", "val_interval=2"]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.long
def test_training_on_two_workers_listens_on_the_loopback_address_alone(tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/train.py"), "upernet_vit-nano_mln_128x128_1k"]
    command += ["--data", str(tiny_data), "--root", str(tmp_path / "runs"), "--workers", "2", "--steps", "2"]
    command += [part for size in SIZES for part in ("--set", size)]
    named = ("RAY_", "GLOO_", "NCCL_", "MLFLOW_")
    settings = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**settings, "HOME": str(tmp_path)}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        found = listening_until_it_ends(process, timeout_s=240)
    finally:
        end_with_children(process)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    # Of all that was looked at: the services of Ray, its workers, and in those the stores where ranks meet.
    assert {"gcs_server", "raylet"} <= set(found)
    assert any("RayTrainWorker" in name for name in found)
    assert {name: addresses - LOOPBACK for name, addresses in found.items() if addresses - LOOPBACK} == {}
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def listening_until_it_ends(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> dict[str, set[str]]:
    """The addresses on which a process and its descendants ever listened, by the names of the processes."""
    found: dict[str, set[str]] = {}
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        assert time.monotonic() < deadline, found
        names = {}
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.Error, IndexError):  # it has ended meanwhile
                names[each.pid] = each.cmdline()[0].split()[0].rpartition("/")[2]
        for connection in psutil.net_connections("inet"):
            if connection.pid in names and connection.status == psutil.CONN_LISTEN:
                found.setdefault(names[connection.pid], set()).add(connection.laddr.ip)
        time.sleep(0.3)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_token_is_made_for_its_owner_alone_and_kept(home: Path) -> None:
    before = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    made = token.read_text()
    assert len(made) == 64
    keep_token_private()
    assert token.read_text() == made
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_token_that_others_could_read_is_closed_to_them(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    keep_token_private()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "0" * 64


def test_token_from_elsewhere_and_no_token_are_left_to_ray(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RAY_AUTH_TOKEN": "1" * 64, "RAY_AUTH_TOKEN_PATH": "/x", "RAY_AUTH_MODE": "disabled"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            keep_token_private()
    assert not (home / ".ray").exists()
