"""`vitrail submit --dry-run` against real parts: a head, a machine that reaches less than the head, S3, and MLflow.

The machine is a namespace of its own, in which a folder is empty that the head has files in; and it has no credentials.
"""

import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from head import Head, end_with_children, free_ports, start_head, start_machine
from ray.job_submission import JobSubmissionClient
from s3_server import S3Server, s3_server
from throughput_cards import card
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cluster.identity import THROUGHPUT, claim_folder
from vitrail.config import RunConfig
from vitrail.data.manifest import Manifest
from vitrail.recipes import get_recipe

ROOT = Path(__file__).parents[2]
NANO = "upernet_vit-nano_mln_128x128_1k"
WAIT = "import signal\nprint('begun', flush=True)\nsignal.pause()\n"
_EMPTIED = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Cluster:
    """A head with two CPUs and a machine with one, and what only the head reaches."""

    head: Head
    checkout: Path
    hidden: Path
    s3: S3Server
    mlflow: str
    """Address of a server whose password the machines do not have."""

    def run(self, *arguments: Any) -> tuple[int, str]:
        """A `vitrail` command: exit code and output, every white space of which is one blank."""
        settings = {**self.head.environment(), "RAY_ADDRESS": None, "MLFLOW_TRACKING_URI": None, "COLUMNS": "80"}
        result = CliRunner().invoke(app, list(map(str, arguments)), env=settings)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, " ".join(result.output.split())

    def look(self, script: str, *arguments: Any, ours: tuple[Any, ...] = ()) -> tuple[int, str]:
        """A dry run of a script."""
        return self.run("submit", "--dry-run", *ours, self.checkout / "jobs" / script, *arguments)

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.head.address, headers={"Authorization": f"Bearer {self.head.token}"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Cluster]:
    if subprocess.run([*_EMPTIED, "/mnt", "true"], capture_output=True).returncode != 0:
        pytest.skip("a machine that lacks a folder needs `unshare --mount`, which is not allowed here")
    folder = tmp_path_factory.mktemp("dry")
    checkout, hidden = folder / "checkout", folder / "hidden"
    for part in ("platform", "jobs"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "jobs/wait.py").write_text(WAIT)
    subprocess.run(["git", "-C", str(checkout), "init", "--quiet"], check=True)
    shutil.copytree(tiny_data, hidden / "data")
    (hidden / "weights.pth").write_bytes(b"weights")
    with ExitStack() as stack:
        mlflow = _start_mlflow(folder / "mlflow", stack)
        s3 = stack.enter_context(s3_server(folder))
        s3.upload(tiny_data, "bucket", "data")
        apart = {"AWS_ENDPOINT_URL": s3.url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        apart["HOME"] = str(folder)  # no credentials in files either
        head = stack.enter_context(
            start_head(
                folder, "--labels=vitrail-cluster=little", num_cpus=2, environment=apart | _credentials_of_a_user(s3)
            )
        )
        stack.enter_context(
            start_machine(head, folder / "apart.log", num_cpus=1, environment=apart, within=[*_EMPTIED, str(hidden)])
        )
        _wait_until_healthy(*mlflow)
        yield Cluster(head, checkout, hidden, s3, mlflow[0])


def _start_mlflow(root: Path, stack: ExitStack) -> tuple[str, "subprocess.Popen[bytes]"]:
    """A server that asks for names; it becomes ready while other things are started."""
    root.mkdir()
    (port,) = free_ports(1)
    command = [sys.executable, "-c", "from vitrail.cli import main; main()", "server", "start", "--auth"]
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1", "--root", str(root), "--port", str(port)],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    stack.callback(end_with_children, process)
    return f"http://127.0.0.1:{port}", process


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)


def _credentials_of_a_user(s3: S3Server) -> dict[str, str]:
    """Of one whom the server knows, also when it asks."""
    iam = boto3.client(
        "iam",
        endpoint_url=s3.url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key=secrets.token_hex(8),
    )
    iam.create_user(UserName="ada")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="ada", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName="ada")["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def test_sound_job_is_described_and_nothing_is_sent_or_left(cluster: Cluster, tiny_data: Path) -> None:
    known = {job.submission_id for job in cluster.client().list_jobs()}
    code, output = cluster.look("train.py", NANO, "--data", tiny_data, "--workers", 3, "--name", "sound")
    assert code == 0, output
    assert "driver on the head" in output
    assert "workers 3 with 1 CPU each: 2 on head; 1 on " in output
    assert "decoding by each worker itself, in 1 thread" in output
    assert "1000 steps of 16 images, from the beginning" in output
    assert "expected not known: no run of this model ended on this cluster yet" in output
    assert "verdict nothing found that would make it fail" in output
    header = ["job", "status", "begins", "time", "prio", "owner", "code", "command"]
    assert cluster.run("list")[1].split() == header
    assert not cluster.head.runs.exists()
    assert not list(tiny_data.parents[1].rglob(".vitrail-*"))
    sent = [job for job in cluster.client().list_jobs() if job.submission_id not in known]
    assert [job.status for job in sent] == ["SUCCEEDED"]  # the probe


def test_what_only_the_head_reaches_is_found(cluster: Cluster) -> None:
    hidden = cluster.hidden
    asked = ["--data", hidden / "data", "--checkpoints", hidden / "kept", "--pretrained", hidden / "weights.pth"]
    code, output = cluster.look(
        "train.py", NANO, *asked, "--workers", 4, "--tracking-uri", f"sqlite:///{hidden}/m/mlflow.db"
    )
    assert code == 2
    assert "error too-few-places: 3 of 4 places for 1 CPU each can be had at once" in output
    assert f"error data-unreachable: {_other(output)}: {hidden}/data does not exist" in output
    assert f"error weights-unreachable: {_other(output)}: there is no file '{hidden}/weights.pth'" in output
    assert f"error checkpoints-not-shared: checkpoints go to {hidden}/kept, and {_other(output)} does not" in output
    assert f"error mlflow-not-shared: runs are recorded in a file in {hidden}/m, and" in output
    assert sorted(path.name for path in hidden.iterdir()) == ["data", "weights.pth"]


def test_missing_credentials_are_found_where_they_are_missing(cluster: Cluster) -> None:
    with cluster.s3.require_known_keys():
        code, output = cluster.look(
            "train.py",
            NANO,
            *("--data", "s3://bucket/data", "--checkpoints", "s3://bucket/runs"),
            *("--tracking-uri", cluster.mlflow, "--workers", 3),
        )
    assert code == 2
    other = _other(output)
    assert f"error data-unreachable: {other}: s3://bucket/data: " in output
    assert f"error checkpoints-unwritable: {other}: nothing can be written to s3://bucket/runs: " in output
    assert f"error mlflow-refused: every machine: MLflow at {cluster.mlflow}: " in output
    assert "verdict 3 errors: it would fail" in output
    left = cluster.s3.client().list_objects_v2(Bucket="bucket", Prefix="runs").get("Contents", [])
    assert {(each["Key"], each["Size"]) for each in left} <= {("runs/", 0)}  # pyarrow's mark of an empty folder


def test_no_machine_for_a_gpu_and_no_place_to_write_to(cluster: Cluster, tiny_data: Path, tmp_path: Path) -> None:
    asked = [NANO, "--data", tiny_data, "--gpus-per-worker", 1, "--workers", 3]
    code, output = cluster.look(
        "train.py", *asked, "--checkpoints", "/proc/none", "--tracking-uri", "http://127.0.0.1:1"
    )
    assert code == 2
    assert "error no-place: no machine can ever hold a worker of 1 CPU and 1 GPUs" in output
    assert "error checkpoints-unwritable: head: nothing can be written to /proc/none: No such file" in output
    assert "error mlflow-unreachable: head: MLflow at http://127.0.0.1:1: nothing answers" in output
    # The file that made the cluster says what may be started.
    launcher = {"cluster_name": "little", "max_workers": 2, "head_node_type": "head"}
    launcher["available_node_types"] = {"head": {"resources": {"CPU": 0}}, "big": {"resources": {"CPU": 4, "GPU": 2}}}
    (tmp_path / "little.yaml").write_text(json.dumps(launcher))
    code, output = cluster.look("train.py", *asked, ours=("--cluster", tmp_path / "little.yaml"))
    assert code == 0, output
    assert "type big: 4 CPUs and 2 GPUs each; 0 of up to 2 are there" in output
    assert "3 on 2 machines of type big that the autoscaler starts" in output
    assert "note unasked: machines of type big are yet to be started" in output


def test_taken_name_and_too_little_space_are_found(cluster: Cluster, tiny_data: Path) -> None:
    theirs = RunConfig(
        name="taken", recipe=get_recipe(NANO), data="/d", data_fingerprint="0" * 16, folder=f"{cluster.head.runs}/taken"
    )
    claim_folder(theirs, resume=False)
    large = ["--set", "model.backbone.embed_dim=65536", "--set", "model.backbone.num_heads=64"]
    asked = [NANO, "--data", tiny_data, "--name", "taken", "--workers", 4, "--min-workers", 2, *large]
    code, output = cluster.look("train.py", *asked)
    assert code == 2
    assert f"error name-taken: {cluster.head.runs}/taken holds another run: " in output
    assert "error no-space: " in output and " free, and 4 checkpoints of " in output
    assert "warning fewer-places: 3 of 4 places" in output


def test_what_the_plan_refuses_and_a_job_of_the_name_are_found(
    cluster: Cluster, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "rich-99.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 99.0\n")
    assert cluster.run("submit", "--name", "taken-name", cluster.checkout / "jobs/wait.py")[0] == 0
    try:
        with monkeypatch.context() as here:
            here.syspath_prepend(str(tmp_path))
            code, output = cluster.look(
                "train.py", NANO, "--data", tiny_data, "--workers", 2, "--global-batch", 1, "--name", "taken-name"
            )
    finally:
        cluster.run("stop", "taken-name")
    assert code == 2
    assert "error refused: global_batch=1 is not enough for 2 workers" in output
    assert "error job-name-in-use: " in output and "`vitrail stop taken-name`" in output
    assert "warning versions-differ: every machine: rich " in output and "(99.0 here)" in output


def test_sweep_and_other_scripts_are_told_as_far_as_they_are_known(cluster: Cluster, tiny_data: Path) -> None:
    earlier = get_recipe(NANO).with_classes(len(Manifest.load(tiny_data).classes))
    folder = cluster.head.runs / "earlier"
    claim_folder(
        RunConfig(name="earlier", recipe=earlier, data="/d", data_fingerprint="0" * 16, folder=str(folder)),
        resume=False,
    )
    (folder / THROUGHPUT).write_text(card().model_dump_json())
    code, output = cluster.look("tune.py", NANO, "--data", tiny_data, "--vary", "lr=1e-3,1e-4", "--seeds", 2)
    assert code == 0, output
    assert "workers 3 at a time with 1 CPU each: 2 on head; 1 on " in output
    # Two rounds of a minute to start, 16,000 images at 20 a second, and a quarter of that for validations.
    assert "4 trials; 3 at a time about 35 min by run earlier on 2 x CPU (" in output
    code, output = cluster.look("wait.py")
    assert code == 0, output
    assert "workers not known" in output and "MiB packed" in output


def _other(output: str) -> str:
    """The other machine's name."""
    (name,) = re.findall(r"(\S+): 1 CPUs and 0 GPUs", output)
    return str(name)
