"""Jobs that wait for each other, make room, and outlive their head; on heads with two CPUs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from head import start_head, switch_off
from job_cluster import WAIT, Cluster, make_checkout
from queue_waiting import status, until
from safetensors.torch import load_file

SAY = "import os\nprint('I am', os.environ['VITRAIL_JOB'], 'on', os.environ['VITRAIL_CPUS_PER_WORKER'], 'CPUs')\n"
# Ends by itself when it is told that it begins once more.
AGAIN = """\
import os, signal
print("begun", flush=True)
if not os.environ.get("VITRAIL_CONTINUE"):
    signal.pause()
print("went on", flush=True)
"""
SCRIPTS = {"say": SAY, "wait": WAIT, "again": AGAIN}
ALL = ("--cpus-per-worker", "2")
"""What a job asks for that takes the whole head."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("queue") / "checkout", SCRIPTS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Iterator[Cluster]:
    with start_head(
        tmp_path_factory.mktemp("head"), num_cpus=2, environment={"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    ) as head:
        yield Cluster(head, checkout)


@pytest.mark.long
def test_jobs_wait_for_their_turn_by_priority_and_then_by_arrival(cluster: Cluster) -> None:
    assert cluster.submit("wait", *ALL, name="holds")[0] == 0
    cluster.wait_until("holds", lambda log: "begun\n" in log)
    for name, priority in (("early", "0"), ("late", "0"), ("urgent", "5"), ("unwanted", "9")):
        assert cluster.submit("say", *ALL, "--priority", priority, name=name)[0] == 0
        until(lambda name=name: f"{name}: QUEUED" in status(cluster, name))
    until(lambda: "  begins     after unwanted-1\n" in status(cluster, "urgent"))
    listed = {line.split()[0]: line.split()[1:4] for line in cluster.run("list")[1].splitlines()}
    assert listed["holds"][0] == "RUNNING"
    assert listed["urgent"] == ["QUEUED", "after", "unwanted-1"]
    assert "waits for its turn, after holds-1" in cluster.run("logs", "early")[1]

    assert cluster.run("stop", "unwanted") == (0, "unwanted: STOPPED\n")
    assert cluster.run("stop", "holds") == (0, "holds: STOPPED\n")
    for name in ("urgent", "early", "late"):
        until(lambda name=name: f"{name}: SUCCEEDED" in status(cluster, name))
    assert "I am late-1 on 2 CPUs" in cluster.run("logs", "late")[1]
    assert "I am" not in cluster.run("logs", "unwanted")[1]
    records = {path.parent.name.split("-", 2)[2]: path for path in cluster.head.runs.glob("jobs/*/log.txt")}
    ends = [records[f"{name}-1"].stat().st_mtime for name in ("holds", "urgent", "early", "late")]
    assert ends == sorted(ends)
    assert "unwanted-1" not in records


@pytest.mark.long
def test_run_makes_room_and_goes_on_by_itself_exactly_where_it_was(cluster: Cluster, tiny_data: Path) -> None:
    """Its weights are in the end those of a run that nobody disturbed."""
    assert cluster.train(tiny_data, "--preemptible", name="humble", steps=300)[0] == 0
    cluster.wait_until("humble", lambda log: "/300  training  loss" in log)
    code, output = cluster.submit("say", "--follow", "--priority", "1", name="higher")
    assert code == 0, output
    code, output = cluster.run("logs", "--follow", "humble")
    assert code == 0, output
    assert "humble-1 makes room for higher-1, and goes on by itself" in output
    assert "and is saved; --resume continues it" in output
    assert cluster.train(tiny_data, "--follow", name="alone", steps=300)[0] == 0
    weights = [load_file(weights_of(cluster, name)) for name in ("humble", "alone")]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[1])


def weights_of(cluster: Cluster, run: str) -> Path:
    (path,) = (cluster.head.runs / run / "checkpoints").glob("step_*300*/model.safetensors")
    return path


@pytest.mark.long
def test_jobs_outlive_their_head_with_logs_history_and_turns(tmp_path: Path, checkout: Path) -> None:
    """The second head has nothing of the first one's disk but the archive."""
    environment = {"VITRAIL_ARCHIVE": str(tmp_path / "archive")}
    (tmp_path / "first").mkdir()
    with start_head(tmp_path / "first", num_cpus=2, environment=environment) as head:
        lost = Cluster(head, checkout)
        assert lost.submit("say", "--follow", name="over")[0] == 0
        assert lost.submit("again", *ALL, name="runs")[0] == 0
        lost.wait_until("runs", lambda log: "begun\n" in log)
        for name in ("waits", "waits-too"):
            assert lost.submit("say", *ALL, name=name)[0] == 0
            until(lambda name=name: f"{name}: QUEUED" in status(lost, name))
        switch_off(head.process)
    shutil.rmtree(tmp_path / "first")

    (tmp_path / "second").mkdir()
    with start_head(tmp_path / "second", num_cpus=2, environment=environment) as head:
        found = Cluster(head, checkout)
        assert found.run("status", "over")[0] == 2
        code, output = found.run("recover")
        assert code == 0, output
        assert "4 jobs fetched from the archive" in output
        assert "runs-1 is sent again, and goes on" in output
        assert "waits-too-1 is sent again, and waits" in output
        assert "1 jobs that are over are shown again" in output
        code, output = found.run("status", "over")
        assert code == 0, output
        assert "command    jobs/say.py" in output
        assert "I am over-1" in found.run("logs", "over")[1]
        for name in ("runs", "waits", "waits-too"):
            code, output = found.run("logs", "--follow", name)
            assert code == 0, output
        assert "went on" in found.run("logs", "runs")[1]
        code, output = found.run("recover")
        assert code == 0 and "sent again" not in output
