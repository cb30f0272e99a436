"""Jobs by name, on a Ray head of its own: sent, followed, listed, stopped, and refused."""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from head import start_head
from job_cluster import WAIT, Cluster, make_checkout

from vitrail.cluster.jobs.jobs import Job, Jobs, NameInUseError
from vitrail.cluster.jobs.request import JobRequest
from vitrail.tracking.job_runs import runs_of_job

SECRET = "hunter22-hunter22"
SCRIPTS = {
    "say": "import os\nprint('I am', os.environ['VITRAIL_JOB'], 'of', os.environ['VITRAIL_JOB_OWNER'])\n",
    "fail": "import sys\nprint('x: failed on rank 1')\nprint('error: rank 1: boom')\nsys.exit(7)\n",
    "crash": "raise ValueError('no such scene')\n",
    "misused": "import sys\nprint('error: no such thing')\nsys.exit(2)\n",
    "wait": WAIT,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One head for all tests here, three CPUs, whose environment carries a password."""
    folder = tmp_path_factory.mktemp("cluster")
    checkout = make_checkout(folder / "checkout", SCRIPTS)
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "MLFLOW_TRACKING_PASSWORD": SECRET}
    with start_head(folder, "--labels=vitrail-cluster=little", num_cpus=3, environment=environment) as head:
        yield Cluster(head, checkout)


@pytest.mark.long
def test_job_is_followed_to_its_end_and_known_by_name(cluster: Cluster) -> None:
    code, output = cluster.submit("say", "--follow", name="first")
    assert code == 0, output
    assert "I am first-1 of " in output
    assert "first: SUCCEEDED" in output
    assert "MiB packed" in output and ".git" in output
    code, output = cluster.run("status", "first")
    assert code == 0
    assert "first: SUCCEEDED" in output
    assert "command    jobs/say.py\n" in output
    assert "tags.`vitrail.job` = 'first-1'" in output
    code, output = cluster.run("list")
    assert [line.split()[:2] for line in output.splitlines()][:2] == [["job", "status"], ["first", "SUCCEEDED"]]
    assert "I am first-1" in cluster.run("logs", "first")[1]


@pytest.mark.long
def test_failed_job_says_why_and_where_its_log_is(cluster: Cluster) -> None:
    code, output = cluster.submit("fail", "--follow", name="failing")
    assert code == 1
    code, output = cluster.run("status", "failing")
    assert code == 1
    assert "failing: FAILED" in output and "exit code 7" in output
    assert "error      failed on rank 1\n" in output
    assert "error      rank 1: boom\n" in output
    assert "vitrail logs failing" in output and "VITRAIL_RUNS/jobs/*-failing-1/log.txt" in output


@pytest.mark.long
def test_crash_is_told_by_its_last_line(cluster: Cluster) -> None:
    code, output = cluster.submit("crash", "--follow", name="crashing")
    assert code == 1
    assert "error      ValueError: no such scene\n" in output


@pytest.mark.long
def test_wrong_command_ends_as_it_would_here(cluster: Cluster) -> None:
    assert cluster.submit("misused", "--follow", name="misused")[0] == 2
    assert cluster.run("status", "misused")[0] == 2


@pytest.mark.long
def test_running_job_is_stopped_with_time_to_save_and_its_name_is_free_again(cluster: Cluster) -> None:
    assert cluster.submit("wait", name="waiting")[0] == 0
    cluster.wait_until("waiting", lambda log: "begun\n" in log)
    code, output = cluster.submit("say", name="waiting")
    assert code == 2
    assert "has not ended; choose another --name, or end it with `vitrail stop waiting`" in output
    assert cluster.run("status", "waiting")[0] == 0
    assert cluster.run("stop", "waiting") == (0, "waiting: STOPPED\n")
    assert "saved\n" in cluster.run("logs", "waiting")[1]
    assert cluster.run("status", "waiting")[0] == 1
    assert cluster.run("stop", "waiting") == (0, "waiting: STOPPED, and was before\n")
    code, output = cluster.submit("say", "--follow", name="waiting")
    assert code == 0
    assert "I am waiting-2 of " in output


@pytest.mark.long
def test_of_two_jobs_sent_at_once_under_one_name_one_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.head.environment().items():
        monkeypatch.setenv(name, value)
    script = cluster.checkout / "jobs/say.py"
    request = JobRequest.parse(script, [], name="twins", default_name="", owner="ada")
    clients, gate = [Jobs(cluster.head.address) for _ in range(2)], threading.Barrier(2)

    def wait_for_the_other(size_bytes: int) -> None:  # both have seen that the name is free
        gate.wait(60)

    def submit(jobs: Jobs) -> Job:
        return jobs.submit(request, packed=wait_for_the_other)

    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(submit, jobs) for jobs in clients]
    refused = [attempt.exception() for attempt in sent if attempt.exception()]
    assert [type(error) for error in refused] == [NameInUseError]
    assert [job.id for job in clients[0].all() if job.name == "twins"] == ["twins-1"]


@pytest.mark.long
def test_pending_job_is_stopped_and_never_begins(cluster: Cluster) -> None:
    client = cluster.client()
    client.submit_job(entrypoint="echo begun", submission_id="pending-1", entrypoint_num_gpus=1)
    assert "pending-1: PENDING" in cluster.run("status", "pending-1")[1]
    assert cluster.run("stop", "pending-1") == (0, "pending-1: STOPPED\n")
    assert client.get_job_info("pending-1").status == "STOPPED"
    assert "begun\n" not in cluster.run("logs", "pending-1")[1]
    assert "python -c" not in cluster.run("list")[1]  # what ended it


@pytest.mark.long
def test_what_can_never_be_placed_is_refused_before_it_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    train = [cluster.checkout / "jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--data", "/nowhere"]
    before = len(cluster.client().list_jobs())
    code, output = cluster.run("submit", *train, "--workers", 9)
    assert code == 2
    assert "9 workers with 0 GPUs and a CPU each do not fit on this cluster, which has 3 CPUs and 0 GPUs" in output
    # The file that made this cluster says how far it may grow; that of another one does not.
    launcher = {"cluster_name": "little", "max_workers": 2, "head_node_type": "head"}
    launcher["available_node_types"] = {"head": {"resources": {"CPU": 0}}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}}
    (tmp_path / "little.yaml").write_text(json.dumps(launcher))
    (tmp_path / "other.yaml").write_text(json.dumps({**launcher, "cluster_name": "other"}))
    for file, available in (("little", "8 CPUs and 2 GPUs"), ("other", "3 CPUs and 0 GPUs")):
        asked = ["--cluster", tmp_path / f"{file}.yaml", *train, "--workers", 3, "--gpus-per-worker", 1]
        code, output = cluster.run("submit", *asked)
        assert code == 2
        assert f"which has {available}" in output
    assert len(cluster.client().list_jobs()) == before


@pytest.mark.long
def test_no_secret_is_in_what_the_cluster_tells_of_a_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert (
        cluster.submit(
            "say",
            "--follow",
            name="discreet",
        )[0]
        == 0
    )
    signed = {"Authorization": f"Bearer {cluster.head.token}"}
    told = requests.get(f"{cluster.head.address}/api/jobs/", headers=signed, timeout=30).text
    told += cluster.run("logs", "discreet")[1] + cluster.run("status", "discreet")[1] + cluster.run("list")[1]
    assert "discreet-1" in told
    assert not [secret for secret in (SECRET, "wJalrXUtnFEMI", cluster.head.token) if secret in told]
    code, output = cluster.run("submit", cluster.checkout / "jobs/say.py", "wJalrXUtnFEMI")
    assert code == 2
    assert "what AWS_SECRET_ACCESS_KEY holds" in output


@pytest.mark.long
def test_who_lacks_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    for settings in (
        {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")},
        {"RAY_AUTH_TOKEN": "0" * 64},
    ):
        for command in (["list"], ["submit", cluster.checkout / "jobs/say.py"], ["stop", "first"]):
            code, output = cluster.run(*command, **settings)
            assert code == 1, output
            assert "refuses the token, or there is none: ~/.ray/auth_token" in output


@pytest.mark.long
def test_address_that_nobody_answers_and_unknown_name_are_explained(cluster: Cluster) -> None:
    code, output = cluster.run("list", "--address", "http://127.0.0.1:1")
    assert code == 1
    assert "`ray dashboard cluster.yaml` opens the way" in output
    code, output = cluster.run("list", "--address", "192.0.2.1:6379")
    assert code == 2
    code, output = cluster.run("status", "frist")
    assert code == 2
    assert "unknown job 'frist'" in output
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


@pytest.mark.long
def test_training_as_a_job_is_stopped_with_a_checkpoint_and_found_in_mlflow(cluster: Cluster, tiny_data: Path) -> None:
    code, output = cluster.train(tiny_data, name="run", steps=4000)
    assert code == 0, output
    cluster.wait_until("run", lambda log: "/4000  training  loss" in log)
    assert cluster.run("stop", "run") == (0, "run: STOPPED\n")
    assert "and is saved; --resume continues it" in cluster.run("logs", "run")[1]
    assert list((cluster.head.runs / "run/checkpoints").glob("step_*"))
    uri = f"sqlite:///{cluster.head.runs / 'mlflow.db'}"
    (run,) = runs_of_job(uri, "run-1")
    assert (run.name, run.status) == ("run", "KILLED")
    assert f"in MLflow  run, KILLED: {run.run_id}" in cluster.run("status", "run", "--tracking-uri", uri)[1]


@pytest.mark.long
def test_training_that_fails_on_a_cluster_says_on_which_rank(cluster: Cluster, tiny_data: Path) -> None:
    code, output = cluster.train(tiny_data, "--follow", name="diverging", steps=20, lr=1e30)
    assert code == 1
    assert "error      failed on rank " in output
    assert "is NaN or infinite" in output
