"""Versions as MLflow models: what they hold, that they need nothing of this project, and what they refuse."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from true_checkpoint import write_true_checkpoint

import vitrail
from vitrail.checkpoint import CheckpointError
from vitrail.evaluation.served import ServedModel
from vitrail.tracking.environment import as_default, quiet_environment
from vitrail.tracking.model_folder import CARD, read_sums
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download
from vitrail.tracking.served_model import ENTRY, requirements, write_served_model
from vitrail.tracking.source_closure import SourceClosure

quiet_environment()
import mlflow.pyfunc  # noqa: E402 - after the settings that it reads

IMAGES = [
    cv2.imencode(suffix, np.random.default_rng(size).integers(0, 256, (size, 2 * size, 3), np.uint8))[1].tobytes()
    for suffix, size in ((".png", 41), (".jpg", 64))
]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]
PICTURES = {"a/street": np.full((30, 40, 3), (200, 30, 30), np.uint8), "b": np.zeros((20, 20, 3), np.uint8)}


@pytest.fixture(scope="module")
def folder(true_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model"
    write_served_model(true_checkpoint, path, name="streets", pictures=PICTURES)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The model once more, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def unchanged_path() -> Iterator[None]:
    """MLflow puts the folder of every model that it loads on the path for good."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def expected(true_checkpoint: Path) -> list[dict]:
    """Answers to `IMAGES` by the checkpoint itself."""
    return [asdict(answer) for answer in ServedModel.open(true_checkpoint).predict(IMAGES)]


def answers(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict(orient="records")


def test_sources_hold_what_inference_needs_and_no_more() -> None:
    closure = SourceClosure.of(ENTRY)
    assert closure.imports == {
        "cv2", "mlflow", "numpy", "pandas", "PIL", "pydantic", "safetensors", "timm", "torch"
    }  # fmt: skip
    assert [name for name, source in closure.sources.items() if re.search(r"(from|import) mlflow", source)] == [ENTRY]
    assert not any(name.startswith(("vitrail.cluster", "vitrail.training")) for name in closure.sources)


def test_sources_import_one_another_under_the_new_name_alone(tmp_path: Path) -> None:
    closure = SourceClosure.of(ENTRY)
    package = closure.write(tmp_path)
    imported = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    assert not [name for name in imported if name.split(".")[0] in ("vitrail", "ray")]
    assert f"{package.name}.evaluation.served" in imported
    assert len(list(package.rglob("*.py"))) == len(closure.sources)
    assert package.name.startswith("vitrail_served_")
    longer = SourceClosure({**closure.sources, "vitrail": closure.sources["vitrail"] + "\n"}, closure.imports)
    assert longer.package != package.name


def test_requirements_pin_every_package_without_local_labels() -> None:
    names = [pin.split("==") for pin in requirements(SourceClosure.of(ENTRY))]
    assert [name for name, _ in names] == sorted(
        ["mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic", "safetensors", "timm", "torch"]
    )
    assert not [version for _, version in names if "+" in version or not version]


def test_folder_is_a_model_of_mlflow_with_a_checkpoint_and_the_sums_of_all_files(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "requirements.txt", CARD, "data/checkpoint.json", "data/model.safetensors"} <= files
    assert {"pictures/1-a_street.jpg", "pictures/2-b.jpg"} <= files
    assert set(read_sums(folder)) == files - {"SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0
    suffixes = {Path(file).suffix for file in files}
    assert suffixes == {"", ".txt", ".md", ".json", ".safetensors", ".jpg", ".py", ".yaml"}
    assert "![b](pictures/2-b.jpg)" in (folder / CARD).read_text()
    assert list(json.loads((folder / "data" / "checkpoint.json").read_text())["files"]) == ["model.safetensors"]


FORMS: dict[str, Callable[[list], object]] = {
    "a DataFrame": lambda images: pd.DataFrame({"image": images}),
    "a dict": lambda images: {"image": images},
    "records": lambda images: [{"image": image} for image in images],
}


@pytest.mark.parametrize("form", FORMS)
def test_bytes_texts_and_arrays_are_taken(folder: Path, expected: list[dict], form: str) -> None:
    model = mlflow.pyfunc.load_model(str(folder))
    arrays = [cv2.cvtColor(cv2.imdecode(np.frombuffer(image, np.uint8), 1), cv2.COLOR_BGR2RGB) for image in IMAGES]
    for images in (IMAGES, TEXTS, arrays, [IMAGES[0], TEXTS[1]], [arrays[0], IMAGES[1]]):
        assert answers(model.predict(FORMS[form](images))) == expected


def test_rows_keep_the_index_that_they_came_with(folder: Path) -> None:
    model = mlflow.pyfunc.load_model(str(folder))
    assert list(model.predict(pd.DataFrame({"image": IMAGES}, index=["a", "b"])).index) == ["a", "b"]


def test_bad_image_is_named(folder: Path) -> None:
    model = mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(MlflowException, match="image 2 of 3 is not a JPEG or PNG that can be decoded") as raised:
        model.predict(pd.DataFrame({"image": [IMAGES[0], b"no image", IMAGES[1]]}))
    assert raised.value.get_http_status_code() == 400


def test_changed_and_missing_files_are_refused_by_name(copied: Path) -> None:
    (source,) = copied.glob("code/*/evaluation/predictor.py")
    for path in (copied / "data" / "model.safetensors", copied / "data" / "checkpoint.json", source):
        sound = path.read_bytes()
        path.write_bytes(sound[:-2] + b" " + sound[-1:])
        with pytest.raises(Exception, match=f"{path.name} has changed") as raised:
            mlflow.pyfunc.load_model(str(copied))
        assert type(raised.value).__name__ == CheckpointError.__name__
        path.write_bytes(sound)
        path.rename(path.with_suffix(".away"))
        with pytest.raises(Exception, match=f"{path.name} is missing"):
            mlflow.pyfunc.load_model(str(copied))
        path.with_suffix(".away").rename(path)
    (copied / "SHA256SUMS").write_text("")
    with pytest.raises(Exception, match="SHA256SUMS is damaged"):
        mlflow.pyfunc.load_model(str(copied))


@pytest.mark.slow
def test_two_versions_and_two_revisions_live_in_one_process(folder: Path, expected: list[dict], tmp_path: Path) -> None:
    other = write_true_checkpoint(tmp_path, seed=1)
    answered = [asdict(answer) for answer in ServedModel.open(other).predict(IMAGES)]
    assert answered != expected
    write_served_model(other, tmp_path / "same", name="streets")
    _write_with_another_revision(other, tmp_path / "revised", sources=tmp_path / "sources")

    images = pd.DataFrame({"image": IMAGES})
    models = [mlflow.pyfunc.load_model(str(path)) for path in (folder, tmp_path / "same", tmp_path / "revised")]
    assert [answers(model.predict(images)) for model in models] == [expected, answered, answered]
    modules = [type(model._model_impl).__module__.split(".")[0] for model in models]
    assert modules[0] == modules[1] != modules[2]
    assert set(modules).isdisjoint({"vitrail"})


def _write_with_another_revision(checkpoint: Path, folder: Path, *, sources: Path) -> None:
    """Package the checkpoint with a copy of this package that differs in a comment."""
    shutil.copytree(Path(vitrail.__file__).parent, sources / "vitrail", ignore=shutil.ignore_patterns("__pycache__"))
    with (sources / "vitrail" / "evaluation" / "predictor.py").open("a") as file:
        file.write("# another revision\n")
    code = f"""
        from pathlib import Path
        from vitrail.tracking.served_model import write_served_model
        write_served_model(Path({str(checkpoint)!r}), Path({str(folder)!r}), name="streets")
    """
    _python(code, cwd=sources.parent, PYTHONPATH=str(sources))


@pytest.mark.slow
def test_loading_and_predicting_neither_unpickle_nor_import_the_installed_package(
    folder: Path, expected: list[dict], tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes(IMAGES[0])
    code = f"""
        import sys
        def watch(event, arguments):
            assert event != "pickle.find_class", arguments
        import mlflow.pyfunc, pandas, torch, timm  # what they do while they are imported is theirs
        sys.addaudithook(watch)
        model = mlflow.pyfunc.load_model({str(folder)!r})
        answer = model.predict({{"image": [open("image.png", "rb").read()]}})
        assert not [name for name in sys.modules if name.split(".")[0] in ("vitrail", "ray")]
        print(answer.to_json(orient="records"))
    """
    printed = _python(code, cwd=tmp_path, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    assert json.loads(printed.splitlines()[-1]) == expected[:1]


def _python(code: str, *, cwd: Path, **environment: str) -> str:
    lines = code.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[indent:] for line in lines)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_registered_version_is_loaded_by_mlflow_and_fetched_with_its_pictures(
    store: str, true_checkpoint: Path, expected: list[dict], tmp_path: Path
) -> None:
    version = register(true_checkpoint, name="streets", tracking_uri=store, pictures=PICTURES)
    with as_default(store):
        model = mlflow.pyfunc.load_model(version.uri)
    assert answers(model.predict({"image": TEXTS})) == expected
    fetched = download(version.uri, tmp_path / "fetched", tracking_uri=store)
    picture = cv2.imread(str(fetched / "pictures" / "1-a_street.jpg"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(picture, PICTURES["a/street"], atol=8)
    address = f"logged-models/{version.model_id}/artifacts/files?artifact_file_path=pictures/1-a_street.jpg"
    assert address in version.description
