"""A head with tokens, from outside: whoever lacks the token is refused on every endpoint of every port it opens."""

import importlib
import json
import os
import pkgutil
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray.core.generated
import requests
from head import Head, start_head
from ray.job_submission import JobSubmissionClient

pytestmark = pytest.mark.long

PASSWORD = "hunter22-hunter22"
WRONG = "0" * 64
OPEN = {
    # What the pages need before somebody has signed in, and whether the cluster lives: no word of what runs on it.
    "dashboard": {
        "GET /",
        "GET /favicon.ico",
        "GET /static",
        "GET /api/authentication_mode",
        "GET /api/gcs_healthz",
    },
    "dashboard_agent": {"GET /api/healthz", "GET /api/local_raylet_healthz"},
}
"""All that a head answers without its token, by its log of what it serves."""
CHECKS_ITSELF = "POST /api/authenticate"
"""Takes a token, and gives a cookie for the right one."""
ROUTE = re.compile(r" -- <\w+Route \[(\w+|\*)\] <(\w+)  (\S+?)[> ]")
ADDRESS = re.compile(r"http address: (\S+):(\d+)")
SERVICES = {
    "ray.rpc.ObjectManagerService": ["Push", "Pull", "FreeObjects"],
    "grpc.health.v1.Health": ["Check"],
}
"""Those that Ray's package for Python does not describe."""
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0.0.0 Safari/537.36"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of one machine with a job on it that waits for its end, so that there is a worker to be asked too."""
    folder = tmp_path_factory.mktemp("head")
    environment = {"MLFLOW_TRACKING_PASSWORD": PASSWORD, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with start_head(folder, num_cpus=1, environment=environment) as head:
        client = JobSubmissionClient(head.address, headers=signed(head.token))
        client.submit_job(entrypoint="echo begun; exec tail -f /dev/null", submission_id="waiting")
        wait_until(lambda: "begun" in client.get_job_logs("waiting"))
        yield head
        client.stop_job("waiting")
        wait_until(lambda: client.get_job_status("waiting").is_terminal())


def signed(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def wait_until(happens: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def routes(head: Head, server: str) -> dict[str, str]:
    """All that a server of the head says in its log that it serves: `METHOD /path`, with its kind of resource."""
    log = (head.temporary / "session_latest" / "logs" / f"{server}.log").read_text()
    return {f"{method} {path}": kind for method, kind, path in ROUTE.findall(log)}


def address(head: Head, server: str) -> str:
    log = (head.temporary / "session_latest" / "logs" / f"{server}.log").read_text()
    ((host, port),) = set(ADDRESS.findall(log))
    return f"http://{host}:{port}"


def ask(address: str, route: str, kind: str, headers: dict[str, str]) -> int:
    """The status with which an endpoint answers; names in braces become a 1, and of a folder, a file is asked for."""
    method, path = route.split()
    path = re.sub(r"\{[^}]*\}", "1", path) + ("/x" if kind == "StaticResource" else "")
    asked = "GET" if method == "*" else method
    with requests.request(asked, address + path, headers=headers, timeout=30, stream=True) as answer:
        return answer.status_code


@pytest.mark.parametrize("server", ["dashboard", "dashboard_agent"])
def test_every_route_refuses_who_has_no_token_or_a_wrong_one(head: Head, server: str) -> None:
    found = routes(head, server)
    assert len(found) >= 10
    assert {"dashboard": "POST /api/jobs/", "dashboard_agent": "POST /api/job_agent/jobs/"}[server] in found
    opened = set()
    for route, kind in found.items():
        # The headers that say which pages may ask are for everybody; what they lead to is not.
        if route.startswith("OPTIONS "):
            continue
        answers = [ask(address(head, server), route, kind, headers) for headers in ({}, signed(WRONG))]
        if answers != [401, 403]:
            assert route == CHECKS_ITSELF or 401 not in answers
            opened.add(route)
    assert opened - {CHECKS_ITSELF} == OPEN[server]


def test_who_has_the_token_is_let_in(head: Head) -> None:
    for header in (signed(head.token), {"X-Ray-Authorization": f"Bearer {head.token}"}):
        assert ask(head.address, "GET /api/jobs/", "PlainResource", header) == 200
    assert requests.post(f"{head.address}/api/authenticate", headers=signed(head.token), timeout=30).ok


def test_what_is_open_tells_nothing(head: Head) -> None:
    told = ""
    for server, opened in OPEN.items():
        for route in opened:
            path = route.split()[1]
            if path != "/static":
                told += requests.get(address(head, server) + path, timeout=30).text
    for port in metrics_ports(head):
        told += requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    assert "authentication_mode" in told and "ray_" in told
    assert not [word for word in (head.token, PASSWORD, "echo begun") if word in told]


def metrics_ports(head: Head) -> list[int]:
    """The ports that Prometheus reads, which everybody may."""
    targets = json.loads((head.temporary / "prom_metrics_service_discovery.json").read_text())
    return [int(target.rpartition(":")[2]) for group in targets for target in group["targets"]]


def test_every_grpc_service_refuses_who_has_no_token_or_a_wrong_one(head: Head) -> None:
    """Every method of every service that Ray describes, on every port that any of the head's processes opened."""
    services = described_services() | SERVICES
    assert sum(map(len, services.values())) > 100
    ports = {port for port in listening_ports(head) if speaks_grpc(port)}
    for metadata in ((), (("authorization", f"Bearer {WRONG}"),)):
        found = {answer for port in ports for answer in grpc_answers(port, services, metadata)}
        refused = {service for service, _, code in found if code == "UNAUTHENTICATED"}
        # Every part of Ray was among those asked: the head's, the machine's, its objects, its workers, its clients'.
        assert {f"ray.rpc.{name}Service" for name in ("JobInfoGcs", "NodeManager", "CoreWorker")} <= refused
        assert {"ray.rpc.ObjectManagerService", "ray.rpc.ReporterService", "ray.rpc.RayletDriver"} <= refused
        let_in = {call for call in found if call[2] != "UNAUTHENTICATED"}
        assert let_in <= {("grpc.health.v1.Health", "Check", "OK")}


def described_services() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in described.services_by_name.values():
                found[service.full_name] = [method.name for method in service.methods]
    return found


def listening_ports(head: Head) -> set[int]:
    return {each.laddr.port for each in listening(head)}


def listening(head: Head) -> list[Any]:
    """The sockets on which any of the head's processes listens."""
    ours = {head.pid, *(child.pid for child in psutil.Process(head.pid).children(recursive=True))}
    found = psutil.net_connections("inet")
    return [each for each in found if each.pid in ours and each.status == psutil.CONN_LISTEN]


def speaks_grpc(port: int) -> bool:
    """Whether a port answers the preface of HTTP/2 with settings, as gRPC does, and not with words of HTTP/1."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.settimeout(10)
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return client.recv(9)[3:4] == b"\4"


def grpc_answers(
    port: int, services: dict[str, list[str]], metadata: tuple[tuple[str, str], ...]
) -> set[tuple[str, str, str]]:
    """How a port answers each method, without those that it does not have."""
    found = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service, methods in services.items():
            for method in methods:
                try:
                    channel.unary_unary(f"/{service}/{method}")(b"", timeout=20, metadata=metadata)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                if code != "UNIMPLEMENTED":
                    found.add((service, method, code))
    return found


def test_every_port_is_one_of_those_that_were_asked(head: Head) -> None:
    """A port that a newer Ray opens is noticed here: what is neither of the two servers, nor for Prometheus, nor gRPC,
    is the agent's for environments, which asks for the token too."""
    known = {int(address(head, server).rpartition(":")[2]) for server in OPEN} | set(metrics_ports(head))
    others = {port for port in listening_ports(head) - known if not speaks_grpc(port)}
    assert len(others) == 1
    for path in ("/", "/get_or_create_runtime_env", "/delete_runtime_env_if_possible", "/get_runtime_envs_info"):
        url = f"http://127.0.0.1:{min(others)}{path}"
        assert [requests.post(url, headers=each, timeout=30).status_code for each in ({}, signed(WRONG))] == [401, 403]


def test_head_of_one_machine_listens_on_the_loopback_address_alone(head: Head) -> None:
    assert {each.laddr.ip for each in listening(head)} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_ray_itself_does_not_get_in(head: Head, tmp_path: Path) -> None:
    """`ray.init`, by somebody else on the machine."""
    (gcs,) = {port for port in listening_ports(head) if _is_gcs(port)}
    program = "import ray, sys; ray.init(sys.argv[1]); print('got in')"
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    settings |= {
        "HOME": str(tmp_path),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_gcs_rpc_server_connect_timeout_s": "5",
    }
    command = [sys.executable, "-c", program, f"127.0.0.1:{gcs}"]
    tokens: list[dict[str, str]] = [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG}]
    with ThreadPoolExecutor() as pool:
        for done in pool.map(
            lambda token: subprocess.run(
                command, env={**settings, **token}, capture_output=True, text=True, timeout=120
            ),
            tokens,
        ):
            assert done.returncode != 0
            assert "got in" not in done.stdout
            assert "uthenticat" in done.stderr, done.stderr


def _is_gcs(port: int) -> bool:
    return speaks_grpc(port) and bool(grpc_answers(port, {"ray.rpc.JobInfoGcsService": ["GetAllJobInfo"]}, ()))


def test_pages_of_other_sites_cannot_act(head: Head) -> None:
    """A page that was led here by a name of its own, or that just sends: a browser has no token for it, and even where
    it had one, Ray takes nothing but questions from browsers."""
    body = {"entrypoint": "echo got in"}
    for headers in ({"Origin": "http://evil.test"}, {"Host": "evil.test:8265"}, {"Sec-Fetch-Site": "cross-site"}):
        sent = {**BROWSER, **headers}
        assert requests.post(f"{head.address}/api/jobs/", json=body, headers=sent, timeout=30).status_code == 401
        cookie = {"ray-authentication-token": head.token}
        for token in ({"headers": sent | signed(head.token)}, {"headers": sent, "cookies": cookie}):
            answer = requests.post(f"{head.address}/api/jobs/", json=body, timeout=30, **token)
            assert answer.status_code == 405
            assert "access-control-allow-origin" not in answer.headers
        assert requests.get(f"{head.address}/api/jobs/", headers=sent, timeout=30).status_code == 401
    jobs = requests.get(f"{head.address}/api/jobs/", headers=signed(head.token), timeout=30).json()
    assert [job["submission_id"] for job in jobs] == ["waiting"]


def test_cookie_of_the_pages_is_for_them_alone(head: Head) -> None:
    answer = requests.post(f"{head.address}/api/authenticate", headers={**BROWSER, **signed(head.token)}, timeout=30)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
