"""Single files in a real S3 server: fetched once, fetched again when they change, and written whole."""

from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from s3_server import CREDENTIALS, S3Server, s3_server
from typer.testing import CliRunner

from vitrail.checkpoint import file_sha256
from vitrail.cli import app
from vitrail.data.storage import Folder
from vitrail.errors import UsageError
from vitrail.models.segmentor import Segmentor
from vitrail.models.weights import export_weights, load_weights
from vitrail.recipes import get_recipe
from vitrail.stored_file import fetch_file, writing_file
from vitrail.tracking.fetch import fetch_model
from vitrail.training.start import load_start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket="bucket")
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)


def test_file_is_fetched_once_and_again_when_it_changes(server: S3Server) -> None:
    uri = f"s3://bucket/deep/file.bin{server.query}"
    with writing_file(uri) as path:
        path.write_bytes(b"one")
    for _ in range(2):
        assert fetch_file(uri).read_bytes() == b"one"
    assert server.count("GET", "bucket/deep/file.bin") == 1
    with writing_file(uri) as path:
        path.write_bytes(b"another")
    assert fetch_file(uri).read_bytes() == b"another"
    assert fetch_file(uri).name == "file.bin"
    assert fetch_file("/a/path") == Path("/a/path")


def test_file_is_not_sent_when_the_block_fails(server: S3Server) -> None:
    with pytest.raises(RuntimeError), writing_file(f"s3://bucket/half/file{server.query}") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert Folder.at(f"s3://bucket/half{server.query}").files() == []


@pytest.mark.parametrize("uri", ["s3://bucket/none/file", "s3://bucket", "s3://no-such-bucket/x/file"])
def test_file_that_is_not_there_is_refused(server: S3Server, uri: str) -> None:
    with pytest.raises(UsageError, match=r"does not exist|names no file"):
        fetch_file(uri + server.query)


def test_weights_are_imported_exported_and_started_from_in_a_store(
    server: S3Server, true_checkpoint: Path, tmp_path: Path
) -> None:
    server.upload(true_checkpoint, "bucket", "runs/step_1")
    places = {name: f"s3://bucket/weights/{name}{server.query}" for name in ("mmseg.pth", "in.safetensors", "vit.pth")}

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["weights", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "written: s3://bucket" in run("export", f"s3://bucket/runs/step_1{server.query}", places["mmseg.pth"])
    run("import", places["mmseg.pth"], places["in.safetensors"])
    file = fetch_model(places["in.safetensors"], root=tmp_path, tracking_uri="unused")
    imported, trained = load_weights(file)[0], load_weights(true_checkpoint)[0]
    assert imported.keys() == trained.keys()
    assert all(torch.equal(imported[name], trained[name]) for name in trained)

    model = Segmentor(get_recipe("upernet_vit-nano_mln_128x128_1k").model)
    export_weights(model, tmp_path / "vit.pth", format="timm")
    Folder.at(f"s3://bucket/weights{server.query}").upload(tmp_path / "vit.pth", "vit.pth")
    coverage = load_start(model, places["vit.pth"])
    assert (coverage.backbone, coverage.source) == (1.0, places["vit.pth"])
    assert coverage.sha256 == file_sha256(tmp_path / "vit.pth")


@pytest.mark.slow
def test_model_is_exported_into_a_store(server: S3Server, true_checkpoint: Path) -> None:
    place = f"s3://bucket/exported/model.onnx{server.query}"
    result = CliRunner().invoke(app, ["models", "export", str(true_checkpoint), place])
    assert result.exit_code == 0 and "written: s3://bucket/exported/model.onnx" in result.output, result.output
    session = onnxruntime.InferenceSession(fetch_file(place))
    assert [value.name for value in session.get_outputs()] == ["labels", "logits"]


@pytest.mark.parametrize("root", ["s3://bucket/runs", "gs://bucket/runs"])
def test_folder_of_runs_is_on_a_disk(run_script: "object", root: str, tmp_path: Path) -> None:
    for command in (
        ["jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--data", "/nowhere"],
        ["jobs/tune.py", "upernet_vit-nano_mln_128x128_1k", "--data", "/nowhere"],
        ["jobs/evaluate.py", "model", "--data", "/nowhere"],
        ["pipelines/predict.py", "model", "images", "out"],
    ):
        code, output = run_script(*command, "--root", root)  # type: ignore[operator]
        assert code == 2
        assert f"{root} is in an object store; the folder of runs holds locks" in output
        assert "--checkpoints" in output
    result = CliRunner().invoke(app, ["models", "list", "--root", root])
    assert result.exit_code == 2 and "the folder of runs holds locks" in result.output
    assert not Path("s3:").exists() and not Path("gs:").exists()
