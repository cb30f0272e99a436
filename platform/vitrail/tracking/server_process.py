"""Running MLflow's server in the foreground: ready when it answers, and gone with all its processes afterwards."""

import errno
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress

from vitrail.errors import UsageError, VitrailError
from vitrail.tracking.server import ServerConfig

_START_TIMEOUT_S = 300.0
"""The tables of a new database take most of it: seven seconds, or a minute on a busy machine."""
_STOP_TIMEOUT_S = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerEndedError(VitrailError):
    """The server ended although nobody asked it to, or never came up."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(url, what)
        self.url, self.what = url, what

    def __str__(self) -> str:
        return f"MLflow's server at {self.url} {self.what}; its last lines above say why"


def run_server(config: ServerConfig, *, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called once it answers.

    Raises:
        UsageError: the port is taken, or the host is not this machine's.
        ServerEndedError: it ended by itself.
    """
    check_port(config.host, config.port)
    asked = _Asked()
    # A session of its own: Ctrl-C then reaches us alone, and whatever it starts is ended with it.
    process = subprocess.Popen(config.command(), env=config.environment(), start_new_session=True)
    try:
        if _wait_until_healthy(config, process, asked):
            ready()
            _wait_for_end(config, process, asked)
    finally:
        _stop(process)


def check_port(host: str, port: int) -> None:
    """Raise a UsageError unless `port` of `host` can be listened on."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(f"--host {host} is not known: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise UsageError(f"port {port} is the system's; choose one above 1023 with --port") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"port {port} is in use; choose another with --port") from None
            raise UsageError(f"cannot listen on {host}: {error.strerror}") from None


class _Asked:
    """Whether a signal has asked for the end. A flag: an exception raised anywhere could leave processes behind."""

    def __init__(self) -> None:
        self.to_end = False
        for number in _SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.to_end = True


def _wait_until_healthy(config: ServerConfig, process: "subprocess.Popen[bytes]", asked: _Asked) -> bool:
    """Return once the server answers; False if it was asked to end before."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not asked.to_end:
        if process.poll() is not None:
            raise ServerEndedError(config.address(), f"did not come up (exit code {process.returncode})")
        if time.monotonic() > deadline:
            raise ServerEndedError(config.address(), f"does not answer after {_START_TIMEOUT_S:.0f} s")
        if _answers(config.address()):
            return True
        time.sleep(0.1)
    return False


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # http_proxy is not for this machine
    try:
        with direct.open(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _wait_for_end(config: ServerConfig, process: "subprocess.Popen[bytes]", asked: _Asked) -> None:
    while not asked.to_end:
        if process.poll() is not None:
            # MLflow's command ends with 0 whatever its workers ended with.
            raise ServerEndedError(config.address(), f"ended by itself (exit code {process.returncode})")
        time.sleep(0.2)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Let it finish its requests, then end whatever is left of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
