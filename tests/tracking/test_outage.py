"""A real server that dies in mid-run, is away at the start, and comes back."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from lossy_proxy import losing_answers
from mlflow_server import Server
from verdicts import give, verdict_on

from vitrail.tracking.environment import TrackingError, connect, retry
from vitrail.tracking.promotion import LostRaceError, history, promote
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download, get_model, list_models
from vitrail.tracking.tracker import MlflowTracker, start_run

pytestmark = pytest.mark.slow


@pytest.fixture
def server(empty_store, tmp_path):
    root = tmp_path / "server"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    server = Server(root)
    yield server
    server.kill()


def begin(server: Server, folder) -> MlflowTracker:
    return start_run(tracking_uri=server.url, experiment="e", run_name="r", run_key="key", folder=folder)


def steps_of(server: Server, run_id: str) -> list[int]:
    def read() -> list[int]:
        return [metric.step for metric in connect(server.url).get_metric_history(run_id, "loss")]

    return retry(read, tracking_uri=server.url, timeout_s=60)  # the server may just be closing the idle connection


def files_of(server: Server, run_id: str, folder: str | None = None) -> list[str]:
    def read() -> list[str]:
        return [entry.path for entry in connect(server.url).list_artifacts(run_id, folder)]

    return retry(read, tracking_uri=server.url, timeout_s=60)


@pytest.mark.long
def test_server_frozen_and_killed_in_mid_run_costs_no_step_time_and_no_record(server, tmp_path):
    server.start()
    tracker = begin(server, tmp_path / "run")
    slowest_s = 0.0
    for step in range(200):
        if step == 50:
            assert tracker.flush(60)
            server.freeze()
        if step == 80:
            server.kill()
        if step == 120:
            server.start()
        started = time.monotonic()
        tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
        if step % 40 == 0:
            tracker.log_text(f"at step {step}", f"notes/{step}.txt")
        slowest_s = max(slowest_s, time.monotonic() - started)
    assert tracker.finish(timeout_s=180)

    assert steps_of(server, tracker.run_id) == list(range(200))
    client = connect(server.url)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert len(files_of(server, tracker.run_id, "notes")) == 5
    assert slowest_s < 5  # a request to a frozen server takes its 30 seconds; writing a line does not


@pytest.mark.long
def test_server_away_from_start_to_end_leaves_all_to_a_later_process(server, tmp_path):
    tracker = begin(server, tmp_path / "run")
    for step in range(30):
        tracker.log_metrics({"loss": 0.1 * step}, step=step)
    tracker.log_text("kept", "notes.txt")
    started = time.monotonic()
    assert tracker.finish("FAILED", timeout_s=2) is False
    assert time.monotonic() - started < 20
    assert tracker.run_id is None

    server.start()
    later = begin(server, tmp_path / "run")
    for step in range(30, 40):
        later.log_metrics({"loss": 0.1 * step}, step=step)
    assert later.finish(timeout_s=180)
    assert steps_of(server, later.run_id) == list(range(40))
    client = connect(server.url)
    assert len(client.search_runs([later._outbox.experiment_id])) == 1
    assert client.get_run(later.run_id).info.status == "FINISHED"
    assert files_of(server, later.run_id) == ["notes.txt"]


@pytest.mark.long
def test_files_that_cannot_be_stored_do_not_hold_up_the_metrics(server, tmp_path):
    server.start()
    (server.root / "artifacts").mkdir(exist_ok=True)
    (server.root / "artifacts").rename(server.root / "elsewhere")
    (server.root / "artifacts").write_text("a file where the store's folder should be")
    tracker = begin(server, tmp_path / "run")
    tracker.log_text("a note", "notes.txt")
    tracker.log_metrics({"loss": 1.0}, step=0)
    deadline = time.monotonic() + 120
    while tracker.run_id is None or steps_of(server, tracker.run_id) != [0]:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    (server.root / "artifacts").unlink()
    (server.root / "elsewhere").rename(server.root / "artifacts")
    assert tracker.finish(timeout_s=180)
    assert files_of(server, tracker.run_id) == ["notes.txt"]


@pytest.mark.long
def test_registration_waits_for_a_server_that_comes_back(server, make_checkpoint, tmp_path):
    server.start()
    checkpoint = make_checkpoint()
    server.kill()
    restart = threading.Timer(1.0, server.start)
    restart.start()
    version = register(checkpoint, name="streets", tracking_uri=server.url, timeout_s=240)
    restart.join()

    assert register(checkpoint, name="streets", tracking_uri=server.url).number == version.number == 1
    give("streets", 1, tracking_uri=server.url)
    folder = download("models:/streets@champion", tmp_path / "fetched", tracking_uri=server.url)
    assert (folder / "data" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert get_model("streets", tracking_uri=server.url).aliases == {"champion": 1}


@pytest.mark.long
def test_server_killed_in_the_middle_of_a_registration_leaves_one_whole_version(server, true_checkpoint, tmp_path):
    server.start()
    with ThreadPoolExecutor(1) as pool:
        registering = pool.submit(register, true_checkpoint, name="streets", tracking_uri=server.url, timeout_s=240)
        while not (server.root / "artifacts").exists() or not list((server.root / "artifacts").rglob("m-*")):
            assert not registering.done()
        server.kill()
        assert not registering.done()
        server.start()
        assert registering.result().number == 1

    client = connect(server.url)
    (version,) = client.search_model_versions("name = 'streets'")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (model,) = client.search_logged_models(experiments)
    assert (version.source, str(model.status)) == (f"models:/{model.model_id}", "READY")
    folder = download("models:/streets/1", tmp_path / "fetched", tracking_uri=server.url)  # compares every checksum
    assert (folder / "data" / "model.safetensors").stat().st_size > 10_000_000


@pytest.mark.long
def test_lost_answers_make_nothing_twice(server, make_checkpoint):
    server.start()
    with losing_answers(server.url) as (address, lost):
        version = register(make_checkpoint(), name="streets", tracking_uri=address)
        give("streets", version.number, tracking_uri=address)
    assert {path.rpartition("mlflow/")[2] for path in lost} == {
        "logged-models",
        "registered-models/create",
        "model-versions/create",
        "registered-models/alias",
    }
    client = connect(server.url)
    assert [int(version.version) for version in client.search_model_versions("name = 'streets'")] == [1]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_logged_models(experiments)) == 1
    assert [model.name for model in client.search_registered_models()] == ["streets"]
    assert [move.to_version for move in history("streets", tracking_uri=server.url)] == [1]


@pytest.mark.long
def test_promotions_at_once_through_a_server_have_one_winner(server, make_checkpoint):
    server.start()
    for seed, miou in enumerate((0.5, 0.6, 0.7)):
        register(make_checkpoint(f"c{seed}", seed=seed, miou=miou), name="streets", tracking_uri=server.url)
    give("streets", 1, tracking_uri=server.url)
    verdicts = [verdict_on("streets", number, tracking_uri=server.url) for number in (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        racing = [pool.submit(promote, verdict, tracking_uri=server.url) for verdict in verdicts]
    errors = [attempt.exception() for attempt in racing]
    assert sorted(type(error) for error in errors if error) == [LostRaceError]
    (won,) = [attempt.result() for attempt, error in zip(racing, errors, strict=True) if error is None]
    assert get_model("streets", tracking_uri=server.url).aliases == {"champion": won.to_version}
    assert [move.to_version for move in history("streets", tracking_uri=server.url)] == [1, won.to_version]


def test_registry_without_a_server_gives_up_in_time_and_says_so(server):
    started = time.monotonic()
    with pytest.raises(TrackingError, match=server.url):
        list_models(tracking_uri=server.url)
    assert time.monotonic() - started < 60
