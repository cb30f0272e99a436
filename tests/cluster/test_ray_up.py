"""`ray up` on machines of one's own, and all that README.md, "On a cluster", says of the cluster that it makes."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ssh_nodes import ROOT, SHARED, Machine, Site, skip_unless_possible, start_site
from test_cluster_yaml import on_premises

from vitrail.data.scenes import draw_scenes

DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"


@pytest.mark.long
def test_own_machines_become_a_cluster_that_trains_and_is_taken_down() -> None:
    skip_unless_possible()
    with start_site(workers=2) as site:
        file = write_configuration(site)
        up = site.run("ray", "up", "-y", "--no-config-cache", str(file), timeout_s=240)
        assert up.returncode == 0, up.stdout
        with tunnel(site, file, DASHBOARD), tunnel(site, file, MLFLOW):
            wait_for_machines(site, 3)
            check_who_lacks_a_secret_is_refused(site)
            check_training_as_jobs(site)
            check_runs_in_mlflow(site)
        down = site.run("ray", "down", "-y", str(file), timeout_s=120)
        assert down.returncode == 0, down.stdout
        for machine in (site.head, *site.workers):
            wait_until_ray_is_gone(site, machine)
    check_nothing_is_left(site)


def write_configuration(site: Site) -> Path:
    """The launcher's file by its own comment, and the two secrets by README.md's first lines."""
    (lines,) = re.findall(r"^\(umask 077; uv run ray get-auth-token.*?(?=^uv run --with)", readme(), re.M | re.S)
    made = site.run("bash", "-euc", lines.replace("uv run ", ""))
    assert made.returncode == 0, made.stdout
    yours = {
        "192.0.2.1\n": f"{site.head.address}\n",
        "[192.0.2.2, 192.0.2.3]": f"[{', '.join(worker.address for worker in site.workers)}]",
        # ssh takes `~` for the folder of whom the process belongs to, which here is not the client's.
        "~/.ssh/id_ed25519": str(site.home / ".ssh/id_ed25519"),
    }
    text = on_premises()
    for example, value in yours.items():
        assert text.count(example) == 1
        text = text.replace(example, value)
    file = site.home / "on-premises.yaml"
    file.write_text(text)
    return file


def readme() -> str:
    return (ROOT / "README.md").read_text()


@contextmanager
def tunnel(site: Site, file: Path, url: str) -> Iterator[None]:
    """`ray dashboard`, which opens the way to a port of the head through ssh."""
    port, log = url.rpartition(":")[2], site.home / "tunnel.log"
    process = site.start("ray", "dashboard", str(file), "--port", port, "--remote-port", port, log=log)
    try:
        deadline = time.monotonic() + 60
        while site.run("curl", "-s", url).returncode != 0:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for_machines(site: Site, count: int) -> None:
    """Return when so many have joined; fail with the head's log of starting them if they do not."""
    deadline = time.monotonic() + 180
    while len(nodes(site)) < count:
        log = "tail -n 50 /tmp/ray/session_latest/logs/monitor.*"
        assert time.monotonic() < deadline, site.ssh(site.head, log).stdout
        time.sleep(1)


def nodes(site: Site) -> list[str]:
    """The addresses of the machines that are alive, asked as somebody who has the token."""
    answer = site.run(
        "bash", "-c", f'curl -sf -H "Authorization: Bearer $(cat ~/.ray/auth_token)" "{DASHBOARD}/api/v0/nodes"'
    )
    if answer.returncode != 0:
        return []
    found = json.loads(answer.stdout)["data"]["result"]["result"]
    return [node["node_ip"] for node in found if node["state"] == "ALIVE"]


def check_who_lacks_a_secret_is_refused(site: Site) -> None:
    """Through the tunnels, and from elsewhere on the machines' network."""
    for path in ("/api/jobs/", "/api/version", "/api/v0/nodes", "/api/cluster_status", "/nodes?view=summary"):
        assert status_code(site, f"{DASHBOARD}{path}") == "401", path
    refused = site.run("vitrail", "list", HOME=str(site.shared))
    assert refused.returncode == 1
    assert "refuses the token, or there is none" in refused.stdout
    refused = site.run("ray", "status", "--address", f"{site.head.address}:6379", HOME=str(site.shared))
    assert refused.returncode != 0
    assert "oken" in refused.stdout
    assert status_code(site, f"http://{site.head.address}:8265/") == "000"
    for mlflow in (MLFLOW, f"http://{site.head.address}:5000"):
        assert status_code(site, f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0") == "401"


def status_code(site: Site, url: str, *options: str) -> str:
    """Of an answer; 000 where nobody gives one."""
    return site.run("curl", "-s", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}", *options, url).stdout


def check_training_as_jobs(site: Site) -> None:
    """Prepare images that all machines have, and train on them with a worker on each machine but the head."""
    draw_scenes(site.shared / "scenes", train=16, val=4, size=64, seed=0)
    submit(site, "images", "--name", "images", "pipelines/prepare.py", f"{SHARED}/scenes", f"{SHARED}/data")
    changes = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
    changes += ["model.backbone.img_size=64", "val_interval=10"]
    options = ["--data", f"{SHARED}/data", "--checkpoints", f"{SHARED}/checkpoints", "--workers", "2", "--steps", "10"]
    options += [part for change in changes for part in ("--set", change)]
    whole_machines = ["--cpus-per-worker", str(os.cpu_count())]  # or else both workers are put on one
    script = ["jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--name", "night", *options]
    submit(site, "night", *whole_machines, *script)
    logs_of_workers = "cat /tmp/ray/session_latest/logs/train/ray-train-app-worker-*.log"
    assert [site.ssh(machine, logs_of_workers).returncode for machine in site.workers] == [0, 0]
    assert site.ssh(site.head, logs_of_workers).returncode != 0


def submit(site: Site, name: str, *command: str) -> None:
    """Send a job and follow it to its end, which has to be a good one."""
    done = site.run("vitrail", "submit", "--follow", *command, timeout_s=240)
    assert done.returncode == 0, done.stdout
    assert f"{name}: SUCCEEDED" in done.stdout


def check_runs_in_mlflow(site: Site) -> None:
    """The job's run is in the head's MLflow, for whom the nodes' credentials name."""
    status = site.run("vitrail", "status", "night", MLFLOW_TRACKING_URI=MLFLOW)
    assert status.returncode == 0, status.stdout
    assert f"in MLflow  night, FINISHED: {MLFLOW}" in status.stdout
    user = re.findall(r"= (\S+)", (site.home / ".mlflow/credentials").read_text())
    assert user[0] == "cluster"
    asked = f"{MLFLOW}/api/2.0/mlflow/experiments/get-by-name?experiment_name=vitrail"
    assert status_code(site, asked, "--user", ":".join(user)) == "200"
    assert status_code(site, asked, "--user", "cluster:guessed") == "401"


def wait_until_ray_is_gone(site: Site, machine: Machine) -> None:
    """Workers end by themselves once they miss the head."""
    deadline = time.monotonic() + 120
    while found := site.ssh(machine, "pgrep -fa 'gcs_server|raylet|dashboard'").stdout.strip():
        assert time.monotonic() < deadline, f"{machine.name}: {found}"
        time.sleep(1)


def check_nothing_is_left(site: Site) -> None:
    """No folder, mount, network or process of the machines and of the client."""
    assert not site.folder.exists()
    assert str(site.folder) not in Path("/proc/mounts").read_text()
    assert not list(Path("/run/netns").glob(f"{site.network}*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{site.network}*"))
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(site.folder) in " ".join(command)]
