"""The launcher's file, as Ray reads it, and on-premises as its own comment makes it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cluster.runtime import HEALTH_CHECKS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster.yaml"


def on_premises() -> str:
    """What the command in the file's head makes of it."""
    (command,) = re.findall(r"^#   sed (.+) cluster\.yaml > on-premises\.yaml$", FILE.read_text(), re.MULTILINE)
    done = subprocess.run(f"sed {command} {FILE}", shell=True, capture_output=True, text=True, check=True)
    return done.stdout


VARIANTS = {"aws": FILE.read_text, "local": on_premises}


@pytest.fixture(params=VARIANTS)
def raw(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Either variant as it is written."""
    config: dict[str, Any] = yaml.safe_load(VARIANTS[request.param]())
    assert config["provider"]["type"] == request.param
    return config


def commands(config: dict[str, Any], part: str = "") -> list[str]:
    return [command for key, value in config.items() if key.endswith(f"{part}_commands") for command in value]


def start_of_ray(config: dict[str, Any], part: str) -> str:
    (command,) = [command for command in commands(config, f"{part}_start_ray") if "ray start" in command]
    return command


def test_ray_accepts_both_variants(raw: dict[str, Any]) -> None:
    validate_config(prepare_config(raw))


def test_ray_would_have_named_a_mistake(raw: dict[str, Any]) -> None:
    config = prepare_config({**raw, "idle_minutes": 1})
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(config)


def test_commands_are_whole(raw: dict[str, Any]) -> None:
    for command in commands(raw):
        subprocess.run(["bash", "-n", "-c", f"true && ({command})"], check=True)


def test_nothing_trains_on_the_head(raw: dict[str, Any]) -> None:
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(start_of_ray(raw, "head").split())
    if "available_node_types" in raw:
        assert raw["available_node_types"][raw["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_workers_of_the_cloud_are_spot_machines_that_come_and_go() -> None:
    config = yaml.safe_load(FILE.read_text())
    workers = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    for node in workers.values():
        assert node["min_workers"] == 0 < node["max_workers"]
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert {"GPU" in node["resources"] for node in workers.values()} == {True, False}
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]


def test_only_who_has_the_token_gets_in(raw: dict[str, Any]) -> None:
    assert re.findall(r"--dashboard-host=(\S+)", start_of_ray(raw, "head")) == ["127.0.0.1"]
    assert "export RAY_AUTH_MODE=token" in environment(raw)
    assert raw["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for part in ("head", "worker"):
        assert all(command.startswith(". ~/vitrail/environment;") for command in commands(raw, f"{part}_start_ray"))


def test_mlflow_runs_on_postgresql_and_asks_for_names(raw: dict[str, Any]) -> None:
    (server,) = [command for command in commands(raw, "head_start_ray") if "vitrail server start" in command]
    assert "--backend 'postgresql+psycopg2:///mlflow" in server
    assert "--auth;" in server
    assert "MLFLOW_TRACKING_URI=http://" in start_of_ray(raw, "head")


def test_options_of_mlflows_server_are_those_that_it_has(raw: dict[str, Any]) -> None:
    (command,) = [command for command in commands(raw, "head_start_ray") if "vitrail server start" in command]
    for name in ("start", "add-user"):
        (used,) = re.findall(rf"vitrail server {name} (.*?)(?:;|\|\|)", command)
        known = CliRunner().invoke(app, ["server", name, "--help"], env={"COLUMNS": "200"}).output
        options = re.findall(r"--[a-z-]+", used)
        assert options
        assert not [option for option in options if option not in known]


def test_no_secret_is_written_down(raw: dict[str, Any]) -> None:
    secret = r"AKIA|aws_secret|password=(?!\$\()|token=[^\s;]*[0-9a-f]{16}"
    assert not re.search(secret, yaml.safe_dump(raw), re.IGNORECASE)


def test_nodes_have_the_health_checks_and_room_for_images(raw: dict[str, Any]) -> None:
    for name, value in HEALTH_CHECKS.items():
        assert f"export {name}={value}\n" in environment(raw)
    for part in ("head", "worker"):
        assert "--object-store-memory=" in start_of_ray(raw, part)
        assert '--object-spilling-directory="$spill"' in start_of_ray(raw, part)


def test_environment_gives_sizes_and_folders(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "vitrail/.venv/bin").mkdir(parents=True)
    (tmp_path / "vitrail/.venv/bin/activate").touch()
    script = f'{environment(raw)}\n. ~/vitrail/environment; echo "$store $spill $VITRAIL_RUNS"'
    done = subprocess.run(
        ["bash", "-euc", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    store, spill, runs = done.stdout.split()
    assert int(store) > 2**26
    assert spill.endswith("/vitrail-spill")
    assert runs == f"{tmp_path}/runs"


def test_versions_are_pinned(raw: dict[str, Any]) -> None:
    for command in commands(raw, "setup"):
        for package in re.findall(r"pip install (?:--\S+ )*(.+?)(?:$|;|&&)", command):
            assert re.fullmatch(r"\w+==\d+\.\d+\.\d+", package.strip()), package
    assert 'exclude-newer = "' in (ROOT / "pyproject.toml").read_text()


def test_what_is_mounted_makes_the_environment(raw: dict[str, Any]) -> None:
    mounted = {local for remote, local in raw["file_mounts"].items() if remote.startswith("~/vitrail/")}
    assert all((ROOT / local).exists() for local in mounted)
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "platform"} <= mounted
    for named in re.findall(r'^(?:readme = |license-files = \[)"(\w[\w.]*)"', project, re.MULTILINE):
        assert named in mounted


def environment(config: dict[str, Any]) -> str:
    """The command that writes what every start of Ray reads."""
    (command,) = [command for command in config["setup_commands"] if "cat > ~/vitrail/environment" in command]
    return str(command)
