"""Machines for `ray up`, of their own processes, network, systemd and ssh, and this one's files under their own writes.

Each is a systemd-nspawn container on an overlay, so that `ray stop` on one ends nothing but its own. They and the
client, from which commands are typed, are joined by a bridge in the client's network namespace: nothing else reaches
them, and they reach nothing else. Two things stand in for the Internet, as settings of the machines: a folder with uv's
wheel for pip, and a copy of this machine's cache of packages for uv.
"""

import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
USER = "ubuntu"
SHARED = Path("/srv/shared")
"""Where all machines have the folder that they share."""
_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "sudo": "sudo",
    "ip": "iproute2",
    "uv": "uv",
}
_PYTHON = "/usr/bin/python3.11"
"""The machines' own, of the version that cluster.yaml asks uv for, so that none has to be fetched."""
_BOOT_TIMEOUT_S = 60

# Runs in mount and process namespaces of its own, so that all it makes and starts is gone with it.
_PREPARE_AND_BOOT = r"""
set -eu
mkdir -p {root}.disk/upper {root}.disk/work {root}.cache/upper {root}.cache/work {root}.cache/uv {root}
mount -t overlay overlay -o lowerdir=/,upperdir={root}.disk/upper,workdir={root}.disk/work {root}
cd {root}
rm -f usr/sbin/policy-rc.d etc/resolv.conf
echo {name} > etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 {name}\n' > etc/hosts
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
chroot . useradd --create-home --shell /bin/bash {user}
printf '{user} ALL=(ALL) NOPASSWD:ALL\n' > etc/sudoers.d/{user}
mkdir -p -m 700 home/{user}/.ssh home/{user}/.cache/uv
cp {folder}/client/.ssh/id_ed25519.pub home/{user}/.ssh/authorized_keys
chroot . chown -R {user} home/{user}/.ssh home/{user}/.cache
ssh-keygen -A -f . >/dev/null
mkdir -p .{shared} etc/uv
printf '[global]\nno-index = true\nfind-links = {shared}/wheels\n' > etc/pip.conf
printf 'offline = true\nlink-mode = "symlink"\ncache-dir = "/home/{user}/.cache/uv"\n' > etc/uv/uv.toml
printf '[Unit]\nRequires=multi-user.target ssh.service\nAfter=ssh.service\n' > etc/systemd/system/node.target
# Of what this machine would start by itself, a new one has ssh alone, and a database once it is installed.
rm -rf etc/systemd/system/multi-user.target.wants etc/systemd/system/timers.target.wants etc/rc?.d
mkdir -p etc/systemd/system/multi-user.target.wants
ln -s /lib/systemd/system/postgresql.service etc/systemd/system/multi-user.target.wants/
# The packages themselves are read from this machine's cache; what describes them is the user's to write.
mount -t overlay overlay -o lowerdir={cache},upperdir={root}.cache/upper,workdir={root}.cache/work {root}.cache/uv
owner=$(chroot . id -u {user}):$(chroot . id -g {user})
find {root}.cache/uv -path '*/archive-v*/*' -prune -o -exec chown -h "$owner" {{}} +
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
  if [ -w $hierarchy/cgroup.procs ]; then
    mkdir -p $hierarchy/{network}
    echo $$ > $hierarchy/{network}/cgroup.procs
  fi
done
cd {folder}
exec systemd-nspawn --quiet --directory={root} --machine={name} --register=no --keep-unit --link-journal=no \
  --resolv-conf=off --timezone=off --rlimit=NOFILE=1024:524288 --network-namespace-path=/run/netns/{network} \
  --bind={folder}/shared:{shared} --bind={root}.cache/uv:/home/{user}/.cache/uv --boot -- --unit=node.target
"""


@dataclass(frozen=True)
class Machine:
    """One that takes ssh."""

    name: str
    address: str


@dataclass(frozen=True)
class Site:
    """A head to be, workers to be, and the client's side of the network."""

    folder: Path
    network: str
    """The client's network namespace."""
    head: Machine
    workers: tuple[Machine, ...]

    @property
    def home(self) -> Path:
        """Of the client."""
        return self.folder / "client"

    @property
    def shared(self) -> Path:
        """What the machines have at `SHARED`, seen from the client."""
        return self.folder / "shared"

    @property
    def environment(self) -> dict[str, str]:
        """Of somebody at the client who has configured nothing."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "VITRAIL_", "SSH_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        ours = {name: str(self.folder) for name in ("TMPDIR", "RAY_TMPDIR")}
        ours |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, **ours, "HOME": str(self.home), "PATH": path, "COLUMNS": "300", "TERM": "dumb"}

    def start(self, *command: str, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Begin a command of the client in the checkout; its output goes to a file."""
        with log.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.network, *command],
                cwd=ROOT,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *command: str, timeout_s: float = 60, **environment: str) -> "subprocess.CompletedProcess[str]":
        """A command of the client in the checkout, to its end; its output and errors are together in `stdout`."""
        return subprocess.run(
            ["ip", "netns", "exec", self.network, *command],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def ssh(self, machine: Machine, command: str) -> "subprocess.CompletedProcess[str]":
        """A command on a machine."""
        key = str(self.home / ".ssh/id_ed25519")
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        options += ["-o", "ConnectTimeout=5", "-o", "BatchMode=yes"]
        return self.run("ssh", "-i", key, *options, f"{USER}@{machine.address}", command)


def skip_unless_possible() -> None:
    """Skip the test, and say why, where such machines cannot be made."""
    if os.getuid() != 0:
        pytest.skip("only root may make machines of namespaces")
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    if missing := [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=path)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if subprocess.run([_PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{_PYTHON} has no pip (Debian's package python3-pip)")
    for file, package in (("system/postgresql.service", "postgresql"), ("systemd", "systemd")):
        if not (Path("/lib/systemd") / file).is_file():
            pytest.skip(f"not installed: {package}")
    with tempfile.TemporaryDirectory() as folder:
        mount = "mkdir u w m && mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w m"
        tried = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", mount],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode != 0:
        pytest.skip(f"namespaces or overlays are refused: {tried.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        sync = ["uv", "sync", "--quiet", "--offline", "--no-dev", "--extra", "postgresql", "--link-mode", "symlink"]
        tried = subprocess.run(
            [*sync, "--python", _PYTHON],
            cwd=ROOT,
            env={**os.environ, "UV_PROJECT_ENVIRONMENT": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode != 0:
        pytest.skip(f"uv's cache lacks what the machines install: {tried.stderr.strip().splitlines()[0]}")


@contextmanager
def start_site(*, workers: int) -> Iterator[Site]:
    """Machines that have booted and take ssh from the client; at the end, nothing of them is left."""
    with ExitStack() as stack:
        # Not below pytest's folder, for the names of sockets must be short.
        folder = Path(tempfile.mkdtemp(prefix="site-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder)
        # Machines of another site that runs meanwhile have other addresses: ssh's shared connections go by those.
        subnet = f"10.{64 + os.getpid() // 250 % 128}.{os.getpid() % 250}"
        names = ["head", *(f"worker{number}" for number in range(1, workers + 1))]
        machines = [Machine(name, f"{subnet}.{10 + number}") for number, name in enumerate(names)]
        network = f"site{os.getpid()}"
        site = Site(folder, network, machines[0], tuple(machines[1:]))
        _make_client(site, stack, f"{subnet}.1")
        for machine in machines:
            _boot(site, machine, stack)
        for machine in machines:
            _wait_for_ssh(site, machine)
        yield site


def _make_client(site: Site, stack: ExitStack, address: str) -> None:
    """The client's folders, key and network, with a bridge for the machines."""
    folder = site.folder
    folder.chmod(0o755)
    for made, mode in ((site.home / ".ssh", 0o700), (site.shared, 0o777), (site.shared / "wheels", 0o755)):
        made.mkdir(parents=True)
        made.chmod(mode)
    _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.home / ".ssh/id_ed25519"))
    wheel = [line for line in (ROOT / "cluster.yaml").read_text().split() if line.startswith("uv==")]
    _call(_PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(site.shared / "wheels"), *wheel)
    stack.callback(_remove_network, site.network)
    _call("ip", "netns", "add", site.network)
    stack.callback(_end_clients, site.network)
    inside = ["ip", "-n", site.network]
    _call(*inside, "link", "set", "lo", "up")
    _call(*inside, "link", "add", "bridge0", "type", "bridge")
    _call(*inside, "address", "add", f"{address}/24", "dev", "bridge0")
    _call(*inside, "link", "set", "bridge0", "up")


def _boot(site: Site, machine: Machine, stack: ExitStack) -> None:
    """Join a machine to the bridge and start it; it ends with this process, whatever becomes of that."""
    network = f"{site.network}-{machine.name}"
    stack.callback(_remove_network, network)
    _call("ip", "netns", "add", network)
    _call("ip", "-n", site.network, "link", "add", machine.name, "type", "veth", "peer", "eth0", "netns", network)
    _call("ip", "-n", site.network, "link", "set", machine.name, "master", "bridge0", "up")
    inside = ["ip", "-n", network]
    _call(*inside, "address", "add", f"{machine.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _call(*inside, "link", "set", device, "up")
    script = _PREPARE_AND_BOOT.format(
        root=site.folder / machine.name,
        folder=site.folder,
        name=machine.name,
        network=network,
        user=USER,
        shared=SHARED,
        cache=_call("uv", "cache", "dir").strip(),
    )
    with (site.folder / f"{machine.name}.log").open("wb") as log:
        booted = subprocess.Popen(
            # Of these, the first ends with this process, and what the second starts, and all below it, with that.
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--pid",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                script,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(_power_off, booted, network)


def _wait_for_ssh(site: Site, machine: Machine) -> None:
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    while (answer := site.ssh(machine, "true")).returncode != 0:
        log = (site.folder / f"{machine.name}.log").read_text(errors="replace")
        assert time.monotonic() < deadline, f"{machine.name}: {answer.stdout}{log}"
        time.sleep(0.5)


def _power_off(process: "subprocess.Popen[bytes]", network: str) -> None:
    """Without ceremony; what ran on the machine ends with its first process."""
    process.kill()
    process.wait()
    for hierarchy in ("", "unified", "systemd"):
        group = Path("/sys/fs/cgroup") / hierarchy / network
        if group.is_dir():
            for folder, _, _ in os.walk(group, topdown=False):
                _until_removed(Path(folder))


def _until_removed(cgroup: Path) -> None:
    """Remove a control group once its last process has ended."""
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    while True:
        try:
            return cgroup.rmdir()
        except OSError:
            assert time.monotonic() < deadline, cgroup
            time.sleep(0.1)


def _end_clients(network: str) -> None:
    """End what still runs at the client, such as the connections that ssh keeps for a while."""
    for pid in map(int, _call("ip", "netns", "pids", network).split()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.terminate()
            process.wait(timeout=30)
    shared = Path("/tmp") / f"ray_ssh_{hashlib.sha256(getpass.getuser().encode()).hexdigest()[:10]}"
    for folder in (*shared.glob("*"), shared):
        with suppress(OSError):  # another cluster's connections are in it
            folder.rmdir()


def _remove_network(name: str) -> None:
    if (Path("/run/netns") / name).exists():
        _call("ip", "netns", "delete", name)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
