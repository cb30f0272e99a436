"""A registered version where nothing is but what it asks for: in an environment of its own, and behind a server."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mlflow_server import free_port, wait_until_healthy

from vitrail.evaluation.served import ServedModel
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMAGES = [
    cv2.imencode(suffix, np.random.default_rng(size).integers(0, 256, (size, 2 * size, 3), np.uint8))[1].tobytes()
    for suffix, size in ((".png", 41), (".jpg", 64))
]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which makes the environment, is not on the path"),
]


@pytest.fixture(scope="module")
def folder(empty_store: Path, true_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as a user fetches it, far from the checkout."""
    root = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = f"sqlite:///{root}/mlflow.db"
    version = register(true_checkpoint, name="streets", tracking_uri=uri)
    return download(version.uri, root / "model", tracking_uri=uri)


@pytest.fixture(scope="module")
def python(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the version's requirements, and nothing else."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    newest = tomllib.loads(PYPROJECT.read_text())["tool"]["uv"]["exclude-newer"]
    versions = (folder / "python_env.yaml").read_text()
    wanted = versions.split("python: ")[1].split()[0]
    outside = {"cwd": place.parent, "env": environment(), "check": True}
    subprocess.run(["uv", "venv", "--quiet", "--python", wanted, str(place)], **outside)
    python = place / "bin" / "python"
    asked = ["--python", str(python), "--exclude-newer", newest, "-r", str(folder / "requirements.txt")]
    subprocess.run(["uv", "pip", "install", "--quiet", *asked], **outside)
    return python


@pytest.fixture(scope="module")
def expected(true_checkpoint: Path) -> list[dict[str, Any]]:
    """Answers to `IMAGES` in this process."""
    return [asdict(answer) for answer in ServedModel.open(true_checkpoint).predict(IMAGES)]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what leads to this project."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", **more}


def test_version_predicts_in_a_fresh_environment(
    folder: Path, python: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "images.json").write_text(json.dumps(TEXTS))
    code = (
        "import importlib.util, json, sys, mlflow.pyfunc\n"
        "assert importlib.util.find_spec('vitrail') is None and importlib.util.find_spec('ray') is None\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(model.predict({'image': json.load(open('images.json'))}).to_json(orient='records'))\n"
    )
    done = subprocess.run(
        [python, "-c", code, folder], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.fixture(scope="module")
def server(folder: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `mlflow models serve` in the fresh environment."""
    place, port = tmp_path_factory.mktemp("server"), free_port()
    command = [python.parent / "mlflow", "models", "serve", "--model-uri", folder, "--env-manager", "local"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=place,
            # MLflow starts the server by its name, from the path.
            env=environment(PATH=f"{python.parent}:{os.environ['PATH']}"),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def ask(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
        {"dataframe_records": [{"image": text} for text in TEXTS]},
        {"inputs": {"image": TEXTS}},
        {"inputs": [{"image": text} for text in TEXTS]},
        {"instances": [{"image": text} for text in TEXTS]},
    ],
    ids=lambda body: f"{next(iter(body))} {type(next(iter(body.values()))).__name__}",
)
def test_server_answers_every_form_of_json(server: str, body: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert ask(server, body) == (200, {"predictions": expected})


def test_server_takes_pixels_as_nested_lists(server: str, expected: list[dict[str, Any]]) -> None:
    pixels = cv2.imdecode(np.frombuffer(IMAGES[0], np.uint8), cv2.IMREAD_COLOR_RGB).tolist()
    assert ask(server, {"dataframe_records": [{"image": pixels}]}) == (200, {"predictions": expected[:1]})


def test_server_refuses_a_bad_image_by_its_number(server: str) -> None:
    for bad in ("street.jpg", base64.b64encode(b"plain text").decode(), None):
        status, answer = ask(server, {"dataframe_records": [{"image": TEXTS[0]}, {"image": bad}]})
        assert status == 400
        assert "image 2 of 2 is " in answer["message"]
        assert "send the bytes of a JPEG or PNG" in answer["message"]
