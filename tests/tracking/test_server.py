"""`vitrail server`: real servers, real people on them, and a real PostgreSQL."""

import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from mlflow_server import free_port, wait_until_healthy
from postgresql_server import PASSWORD, PostgreSQL, postgresql
from typer.testing import CliRunner
from verdicts import give

from vitrail.cli import app
from vitrail.errors import UsageError
from vitrail.tracking.backend import BACKEND_VARIABLE, open_backend
from vitrail.tracking.environment import TrackingError, connect
from vitrail.tracking.promotion import history, rollback
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download, get_model, list_models
from vitrail.tracking.server_auth import load_secrets
from vitrail.tracking.tracker import start_run

API = "api/2.0/mlflow"
VITRAIL = [sys.executable, "-c", "from vitrail.cli import main; main()"]
TRIALS, STEPS, METRICS = 24, 8, 20


class Started:
    """`vitrail server start`, as a person would run it."""

    def __init__(self, root: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / "server.log"
        command = [*VITRAIL, "server", "start", "--root", str(root), "--port", str(self.port), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **(environment or {})}, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until_healthy(self.url, self.process)
        except RuntimeError as error:
            raise RuntimeError(self.log.read_text()) from error

    def processes(self) -> list[psutil.Process]:
        """All of it: the command, MLflow's, and the workers."""
        command = psutil.Process(self.process.pid)
        return [command, *command.children(recursive=True)]

    def stop(self) -> None:
        """End it as a service manager would: nothing is left, and the exit code says that all was well."""
        if self.process.poll() is not None:
            return
        children = self.processes()[1:]
        assert len(children) >= 2
        self.process.terminate()
        assert self.process.wait(60) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes folders with a store, since MLflow takes its time to make one."""

    def make() -> Path:
        root = tmp_path_factory.mktemp("served")
        shutil.copy(empty_store, root / "mlflow.db")
        return root

    return make


@contextmanager
def acting_as(name: str, password: str) -> Iterator[None]:
    """Sign in with MLflow's clients, as people do: by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        yield


@contextmanager
def denied() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    with pytest.raises((MlflowException, TrackingError)) as caught:
        yield
    assert "Permission denied" in str(caught.value)


@pytest.fixture(scope="module")
def guarded(folder: Callable[[], Path]) -> Iterator[Started]:
    """A server that asks for names, and is called mlflow.test as well."""
    started = Started(folder(), "--auth", "--allowed-hosts", "mlflow.test")
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def passwords(guarded: Started) -> dict[str, str]:
    """The people on it."""
    made = {}
    for name, role in [("ada", "trainer"), ("tom", "trainer"), ("pia", "promoter"), ("vic", "viewer")]:
        made[name] = secrets.token_urlsafe()
        about = [] if role == "viewer" else ["--models", "scenes"]
        given = ["--ask-password", "--root", str(guarded.root), "--tracking-uri", guarded.url]
        result = CliRunner().invoke(app, ["server", "add-user", name, "--role", role, *about, *given], input=made[name])
        assert result.exit_code == 0, result.output
        assert made[name] not in result.output
    return made


@pytest.mark.slow
def test_server_answers_to_the_names_it_was_given_and_to_localhost_alone(guarded):
    admin = ("admin", load_secrets(guarded.root / "auth").admin_password)

    def status(host: str) -> int:
        answer = requests.get(
            f"{guarded.url}/{API}/experiments/search?max_results=1", headers={"Host": host}, auth=admin, timeout=30
        )
        return answer.status_code

    named = ["localhost", "127.0.0.1", "[::1]", "mlflow.test"]
    assert [status(f"{name}:{guarded.port}") for name in named] == [200] * 4
    assert [status("mlflow.test"), status(f"evil.test:{guarded.port}"), status("mlflow.test.evil.test")] == [
        200,
        403,
        403,
    ]


@pytest.mark.slow
def test_pages_of_other_sites_may_not_write_and_the_servers_own_may(guarded):
    admin = ("admin", load_secrets(guarded.root / "auth").admin_password)

    def status(origin: str) -> int:
        answer = requests.post(
            f"{guarded.url}/{API}/experiments/search",
            headers={"Origin": origin},
            json={"max_results": 1},
            auth=admin,
            timeout=30,
        )
        return answer.status_code

    own = [guarded.url, f"http://mlflow.test:{guarded.port}", "https://mlflow.test"]
    assert [status(origin) for origin in own] == [200] * 3
    assert status("http://evil.test") == 403


@pytest.mark.slow
def test_nobody_gets_in_without_a_name(guarded, passwords):
    question = f"{guarded.url}/{API}/experiments/search?max_results=1"
    assert requests.get(question, timeout=30).status_code == 401
    assert requests.get(question, auth=("vic", "not the password"), timeout=30).status_code == 401
    assert requests.get(question, auth=("vic", passwords["vic"]), timeout=30).status_code == 200


@pytest.mark.slow
def test_trainers_register_candidates_and_promoters_alone_touch_production(
    guarded, passwords, make_checkpoint, tmp_path
):
    url, production = guarded.url, "scenes-production"
    for number, trainer in enumerate(["ada", "tom"], start=1):  # in one experiment, which the first creates
        with acting_as(trainer, passwords[trainer]):
            checkpoint = make_checkpoint(trainer, seed=number, miou=0.5 + number / 10)
            assert register(checkpoint, name="scenes", tracking_uri=url).number == number
            with denied():
                give("scenes", number, tracking_uri=url, into=production)

    with acting_as("pia", passwords["pia"]):
        for number in (1, 2):
            assert give("scenes", number, tracking_uri=url, into=production).to_version == number
        assert rollback(production, tracking_uri=url).to_version == 1
        assert {move.by for move in history(production, tracking_uri=url)} == {"pia"}
        with denied():
            connect(url).delete_registered_model(production)

    with acting_as("ada", passwords["ada"]):
        with denied():
            connect(url).set_registered_model_alias(production, "champion", "2")
        with denied():
            connect(url).set_model_version_tag(production, "1", "vitrail.mIoU", "0.99")
        with denied():
            register(make_checkpoint("past", seed=9), name=production, tracking_uri=url)
        assert get_model(production, tracking_uri=url).aliases == {"champion": 1}
        fetched = download(f"models:/{production}@champion", tmp_path / "fetched", tracking_uri=url)
    assert (fetched / "data" / "model.safetensors").read_bytes() == (
        tmp_path / "ada" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_viewers_read_everything_and_write_nothing(guarded, passwords, tmp_path):
    url = guarded.url
    with acting_as("ada", passwords["ada"]):
        tracker = start_run(tracking_uri=url, experiment="vitrail", run_name="r", run_key="k", folder=tmp_path / "run")
        tracker.log_metrics({"loss": 1.0}, step=0)
        assert tracker.finish(timeout_s=120)
        assert tracker.run_id is not None

    with acting_as("vic", passwords["vic"]):
        client = connect(url)
        run = client.get_run(tracker.run_id)
        assert run.data.metrics == {"loss": 1.0}
        assert {"scenes", "scenes-production"} <= {model.name for model in list_models(tracking_uri=url)}
        with denied():
            client.log_metric(tracker.run_id, "loss", 2.0)
        with denied():
            client.create_run(run.info.experiment_id)
        with denied():
            client.set_registered_model_tag("scenes", "seen", "by vic")
        artifact = f"{url}/api/2.0/mlflow-artifacts/artifacts/{run.info.experiment_id}/{tracker.run_id}/artifacts/x"
        answer = requests.put(artifact, data=b"x", auth=("vic", passwords["vic"]), timeout=30)
        assert answer.status_code == 403


@pytest.mark.slow
def test_secrets_are_in_no_list_of_processes_and_no_log_and_nobody_else_reads_them(guarded):
    found = load_secrets(guarded.root / "auth")
    for secret in (found.admin_password, found.flask_secret_key):
        assert len(secret) >= 12
        assert secret not in command_lines()
        assert secret not in guarded.log.read_text()
    assert ((guarded.root / "auth").stat().st_mode & 0o777) == 0o700
    assert {path.stat().st_mode & 0o077 for path in (guarded.root / "auth").glob("*.[ij]*")} == {0}


@pytest.mark.slow
def test_people_are_told_once_how_to_sign_in_and_may_get_a_second_role(guarded, passwords):
    given = ["--root", str(guarded.root), "--tracking-uri", guarded.url]

    def add(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["server", "add-user", *arguments, *given])
        assert result.exit_code == code, result.output
        return result.output

    password = add("eve", "--role", "viewer").split("password: ")[1].strip()
    with acting_as("eve", password):
        assert list_models(tracking_uri=guarded.url)
    told = add("eve", "--role", "promoter", "--models", "roads")
    assert "roads-production" in told and "existed already" in told
    with acting_as("eve", password):
        connect(guarded.url).set_registered_model_tag("roads-production", "seen", "by eve")
    assert "exists already" in add("eve", "--role", "viewer", code=2)
    assert "needs --models" in add("eve", "--role", "trainer", code=2)
    with acting_as("eve", password):  # who makes a model before the administrator does
        connect(guarded.url).create_registered_model("lakes-production")
    told = add("pia", "--role", "promoter", "--models", "lakes", code=2)
    assert "lakes-production was made by eve" in told
    with acting_as("eve", password):  # who is no administrator
        assert "only an administrator" in add("mallory", "--role", "promoter", "--models", "roads", code=1)


@pytest.mark.nightly
@pytest.mark.long
def test_24_trials_at_once_lose_nothing_on_sqlite(folder, tmp_path):
    started = Started(folder())
    try:
        log_at_once(started.url, tmp_path)
    finally:
        started.stop()
    with closing(sqlite3.connect(started.root / "mlflow.db")) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        assert_complete(connection.execute(COUNTS).fetchall())
    told = started.log.read_text()
    assert f"{started.url}/#/experiments?workflowType=machine_learning" in told
    assert f"MLFLOW_TRACKING_URI={started.url}" in told


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as running:
        yield running


@pytest.mark.long
def test_24_trials_at_once_lose_nothing_on_postgresql(database, tmp_path):
    import psycopg2

    started = Started(tmp_path, environment={BACKEND_VARIABLE: database.uri()})
    try:
        log_at_once(started.url, tmp_path)
        assert len(started.processes()) >= 4  # more than one worker
        for written in (PASSWORD, database.uri()):
            assert written not in command_lines()
            assert written not in started.log.read_text()
    finally:
        started.stop()
    with closing(psycopg2.connect(database.uri())) as connection, connection.cursor() as cursor:
        cursor.execute(COUNTS)
        assert_complete(cursor.fetchall())


@pytest.mark.long
def test_postgresql_is_asked_before_the_server_starts(database, tmp_path, monkeypatch):
    file = tmp_path / "address"
    file.write_text(f"{database.uri(scheme='postgres')}\n")
    backend = open_backend(tmp_path, argument=None, file=file, workers=1)
    assert backend.uri.startswith("postgresql+psycopg2://")
    assert PASSWORD not in f"{backend} {backend.name}"
    with pytest.raises(UsageError, match="--workers 2"):  # of PostgreSQL's default of 100 connections
        open_backend(tmp_path, argument=None, file=file, workers=4)

    named = database.uri(password=None)
    with pytest.raises(TrackingError, match="does not answer"):
        open_backend(tmp_path, argument=named, file=None, workers=None)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)  # read by PostgreSQL's own library
    assert open_backend(tmp_path, argument=named, file=None, workers=None).workers in (1, 2)

    file.write_text(database.uri(password="something else"))
    result = CliRunner().invoke(app, ["server", "start", "--root", str(tmp_path), "--backend-file", str(file)])
    assert result.exit_code == 1
    assert "authentication failed" in result.output
    assert "something" not in result.output


@pytest.mark.long
def test_server_that_dies_by_itself_ends_with_1(folder):
    started = Started(folder())
    try:
        worker = next(process for process in started.processes() if "uvicorn" in process.cmdline())
        worker.kill()
        assert started.process.wait(60) == 1
    finally:
        started.stop()
    assert "ended by itself" in started.log.read_text()


@pytest.mark.long
def test_ctrl_c_before_the_server_is_up_leaves_nothing_behind(folder):
    root, port = folder(), free_port()
    process = subprocess.Popen(
        [*VITRAIL, "server", "start", "--root", str(root), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert b"needs some seconds" in process.stdout.readline()
    process.stdout.readline()  # a line of MLflow's: it is there
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert children and psutil.wait_procs(children, timeout=5)[1] == []


def test_port_that_is_taken_is_a_wrong_command(store, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["server", "start", "--root", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 2
    assert "in use" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--host", "mlflow.test", "--port", "1"], "--no-auth"),
        (["--host", "192.0.2.1", "--no-auth"], "cannot listen on 192.0.2.1"),
        (["--backend", "postgresql://me:hunter2@db/mlflow"], BACKEND_VARIABLE),
        (["--backend", "postgresql://me@db/mlflow?password=hunter2"], BACKEND_VARIABLE),
        (["--backend", "postgresql+psycopg://me@db/mlflow"], "postgresql+psycopg2://"),
        (["--backend", "mysql://me@db/mlflow"], "not supported"),
        (["--backend", "hunter2"], "not an address"),
        (["--backend-file", "nowhere"], "cannot read"),
        (["--backend-file", "nowhere", "--backend", "postgresql://db/mlflow"], "give one of them"),
        (["--workers", "2"], "one writer at a time"),
    ],
)
def test_wrong_commands_end_with_2_and_a_way_out(store, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["server", "start", "--root", str(tmp_path), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "hunter2" not in result.output and "Traceback" not in result.output


def test_missing_driver_is_answered_with_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UsageError, match="--extra postgresql"):
        open_backend(tmp_path, argument="postgresql://db/mlflow", file=None, workers=None)


def test_secrets_that_others_may_read_are_refused(tmp_path):
    (tmp_path / "auth").mkdir(mode=0o700)
    (tmp_path / "auth" / "secrets.json").write_text("{}")
    (tmp_path / "auth" / "secrets.json").chmod(0o644)
    given = ["--root", str(tmp_path), "--role", "viewer"]
    result = CliRunner().invoke(app, ["server", "add-user", "ada", *given])
    assert result.exit_code == 2
    assert "chmod go=" in result.output


COUNTS = """
select metrics.run_uuid, key, count(*), count(distinct step), min(step), max(step)
from metrics join runs on runs.run_uuid = metrics.run_uuid group by metrics.run_uuid, key
"""


def log_at_once(url: str, folder: Path) -> None:
    """24 trials, each of which waits until a step is stored before it logs the next."""
    together = threading.Barrier(TRIALS)

    def trial(number: int) -> bool:
        run = folder / f"trial-{number}"
        tracker = start_run(tracking_uri=url, experiment="e", run_name=run.name, run_key=run.name, folder=run)
        stored = tracker.flush(120)
        together.wait()
        for step in range(STEPS):
            tracker.log_metrics({f"val/metric-{metric}": number + step / STEPS for metric in range(METRICS)}, step)
            stored &= tracker.flush(120)
        return stored & tracker.finish(timeout_s=120)

    with ThreadPoolExecutor(TRIALS) as pool:
        assert all(pool.map(trial, range(TRIALS)))


def assert_complete(counts: list[tuple[str, str, int, int, int, int]]) -> None:
    assert len(counts) == TRIALS * METRICS
    assert {tuple(row[2:]) for row in counts} == {(STEPS, STEPS, 0, STEPS - 1)}
    assert len({run for run, *_ in counts}) == TRIALS


def command_lines() -> str:
    """Of all processes on this machine, as everybody sees them."""
    return "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
