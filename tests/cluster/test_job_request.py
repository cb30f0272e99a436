"""What goes along with a job, and what is refused before anything is sent."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from vitrail.cluster.jobs.code_package import CodePackage, CodeTooLargeError
from vitrail.cluster.jobs.request import JobRequest, check_no_secrets
from vitrail.cluster.queue.policy import Demand
from vitrail.cluster.runtime import InfeasibleError
from vitrail.errors import UsageError
from vitrail.revision import revision_of

ROOT = Path(__file__).parents[2]
TRAIN = ["upernet_vit-nano_mln_128x128_1k", "--data", "/shared/scenes"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with little in it, and with what should stay where it is."""
    root = tmp_path / "checkout"
    for name in (
        "platform/vitrail/__init__.py",
        "jobs/say.py",
        "tests/test_it.py",
        "runs/a/best",
        "secret.txt",
        "x.bin",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    shutil.copy(ROOT / "jobs/train.py", root / "jobs/train.py")
    (root / ".gitignore").write_text("secret.txt\n*.bin\n")
    subprocess.run(["git", "-C", str(root), "init", "--quiet"], check=True)
    subprocess.run(["git", "-C", str(root), "add", "jobs", "platform", ".gitignore"], check=True)
    return root


def request(script: Path, *arguments: str, name: str | None = None) -> JobRequest:
    return JobRequest.parse(script, arguments, name=name, default_name="made-up", owner="ada")


def test_code_goes_along_and_the_rest_stays(checkout: Path, tmp_path: Path) -> None:
    (checkout / "jobs/new.py").write_text("not added yet")
    package = CodePackage.of(checkout / "jobs/say.py")
    package.write(tmp_path / "code.zip")
    expected = {".gitignore", "jobs/new.py", "jobs/say.py", "jobs/train.py", "platform/vitrail/__init__.py"}
    assert set(zipfile.ZipFile(tmp_path / "code.zip").namelist()) == expected
    assert package.left_out() == [".git", "runs", "secret.txt", "tests", "x.bin"]


def test_same_code_is_the_same_package(checkout: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        CodePackage.of(checkout / "jobs/say.py").write(tmp_path / name)
        os.utime(checkout / "jobs/say.py", (0, 0))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_code_that_ray_would_not_take_is_refused_with_its_largest_files(checkout: Path, tmp_path: Path) -> None:
    (checkout / "weights.pth").write_bytes(os.urandom(20_000))
    with pytest.raises(CodeTooLargeError, match=r"largest files are weights\.pth, .*\.gitignore"):
        CodePackage.of(checkout / "jobs/say.py").write(tmp_path / "code.zip", limit_bytes=10_000)


def test_script_that_would_stay_is_refused(checkout: Path, tmp_path: Path) -> None:
    for name, reason in (
        ("tests/test_it.py", "would stay here"),
        ("x.bin", "would stay here"),
        ("no.py", "not a file"),
    ):
        with pytest.raises(UsageError, match=reason):
            CodePackage.of(checkout / name)
    (tmp_path / "alone.py").touch()
    with pytest.raises(UsageError, match="not in a checkout"):
        CodePackage.of(tmp_path / "alone.py")


def test_secrets_in_arguments_are_refused_and_not_repeated() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "MLFLOW_TRACKING_PASSWORD": "hunter22",
        "HOME": "/home/ada",
    }
    check_no_secrets(["--data", "s3://bucket/scenes", "--root", "/home/ada"], environment)
    for argument in ("--key=wJalrXUtnFEMI", "hunter22", "http://ada:pw@mlflow.example", "postgresql://:pw@db/mlflow"):
        with pytest.raises(UsageError, match="argument 2 of the script holds") as refused:
            check_no_secrets(["--data", argument], environment)
        assert not any(secret in str(refused.value) for secret in ("wJalrXUtnFEMI", "hunter22", ":pw@"))


def test_nothing_of_the_environment_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    sent = request(ROOT / "jobs/train.py", *TRAIN)
    names = {"PYTHONPATH", "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "VITRAIL_REVISION", "VITRAIL_JOB", "VITRAIL_JOB_OWNER"}
    names |= {"VITRAIL_JOB_RECORD"}
    assert set(sent.environment("a-1")) == names
    assert sent.environment("a-1")["VITRAIL_REVISION"] == revision_of(ROOT / "platform/vitrail")
    assert "hunter22" not in repr(sent)


def test_arguments_are_checked_by_the_script_itself() -> None:
    with pytest.raises(UsageError, match=r"jobs/train\.py: Invalid value for '--workers'.*--help"):
        request(ROOT / "jobs/train.py", *TRAIN, "--workers", "many")
    with pytest.raises(UsageError, match="No such option"):
        request(ROOT / "jobs/train.py", *TRAIN, "--wrokers", "2")


def test_place_that_other_machines_lack_is_refused() -> None:
    for option, place in (("--data", "scenes"), ("--root", "runs"), ("--checkpoints", "../kept")):
        with pytest.raises(UsageError, match=f"{option} {place} is a path of this machine"):
            request(ROOT / "jobs/train.py", *TRAIN, option, place)
    request(ROOT / "jobs/train.py", *TRAIN, "--data", "s3://bucket/scenes")
    request(ROOT / "pipelines/demo.py", "--images", "16")
    for script, arguments, wrong in (
        ("pipelines/prepare.py", ("s3://bucket/ade", "data"), "DST data"),
        ("pipelines/prepare.py", ("ade", "/shared/data"), "SRC ade"),
        ("pipelines/predict.py", ("models:/scenes@champion", "photographs", "/shared/out"), "IMAGES photographs"),
        ("pipelines/predict.py", ("models:/scenes@champion", "/shared/photographs", "out"), "OUT out"),
        ("pipelines/doctor.py", ("ade",), "PLACE ade"),
        ("jobs/evaluate.py", ("models:/scenes@champion", "--data", "/d", "--out", "all.json"), "--out all.json"),
    ):
        with pytest.raises(UsageError, match=f"{wrong} is a path of this machine"):
            request(ROOT / script, *arguments)


def test_model_of_this_machine_is_refused_and_a_registered_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step_001000").mkdir()
    for model in ("models:/scenes@champion", "/shared/step_001000", "s3://bucket/step_001000"):
        request(ROOT / "jobs/evaluate.py", model, "--data", "/shared/data")
    with pytest.raises(UsageError, match="MODEL step_001000 is a path of this machine"):
        request(ROOT / "jobs/evaluate.py", "step_001000", "--data", "/shared/data")
    with pytest.raises(UsageError, match="--pretrained step_001000 is a path of this machine"):
        request(ROOT / "jobs/train.py", *TRAIN, "--pretrained", "step_001000")


def test_name_is_the_scripts_own_unless_given() -> None:
    assert request(ROOT / "jobs/train.py", *TRAIN, "--name", "nightly").name == "nightly"
    assert request(ROOT / "jobs/train.py", *TRAIN, "--name", "nightly", name="job").name == "job"
    assert request(ROOT / "jobs/train.py", *TRAIN).name == "made-up"
    with pytest.raises(UsageError, match="cannot be called 'a b'"):
        request(ROOT / "jobs/train.py", *TRAIN, name="a b")


def test_arguments_reach_the_shell_as_they_were_typed() -> None:
    sent = request(ROOT / "jobs/train.py", *TRAIN, "--set", "transforms.scale=[256, 64]", "--register", "it's $HOME")
    script = sent.entrypoint().replace("exec python -m vitrail.cluster.queue.entry", "printf '%s|'")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("|")[:-1] == [
        "jobs/train.py",
        *TRAIN,
        "--set",
        "transforms.scale=[256, 64]",
        "--register",
        "it's $HOME",
    ]


def test_demand_is_what_the_scripts_options_come_to() -> None:
    gpus = ("--workers", "4", "--gpus-per-worker", "1")
    train = request(ROOT / "jobs/train.py", *TRAIN, *gpus, "--min-workers", "2", "--validate-beside").demand
    assert train == Demand(workers=5, min_workers=2, gpus_per_worker=1.0)
    sweep = ("jobs/spaces/necks.toml", "--data", "/scenes", *gpus)
    assert request(ROOT / "jobs/tune.py", *sweep, "--concurrent", "3").demand == Demand(workers=12, gpus_per_worker=1.0)
    assert request(ROOT / "jobs/tune.py", *sweep).demand.whole_cluster
    assert request(ROOT / "pipelines/prepare.py", "/ade", "/scenes").demand == Demand()
    notes = request(ROOT / "jobs/train.py", *TRAIN, *gpus).notes()
    assert TypeAdapter(Demand).validate_json(notes["vitrail.demand"]).workers == 4


def test_what_can_never_be_placed_is_refused() -> None:
    sent = request(ROOT / "jobs/train.py", *TRAIN, "--workers", "8", "--gpus-per-worker", "1")
    sent.check_fits([{"CPU": 48, "GPU": 4}] * 2)
    with pytest.raises(InfeasibleError, match=r"8 workers with 1 GPUs and a CPU each do not fit .* 48 CPUs and 4 GPUs"):
        sent.check_fits([{"CPU": 48, "GPU": 4}])
    request(ROOT / "jobs/train.py", *TRAIN, "--workers", "8", "--min-workers", "4").check_fits([{"CPU": 4}])
