"""The repository's shape: what lies at the top, who imports whom, and Python's own `platform` module."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"platform", "jobs", "pipelines", "tests", "cluster.yaml", "pyproject.toml", "README.md", "LICENSE"}

# part -> modules that importing it must not bring along
FORBIDDEN = {
    "vitrail.recipes": {"torch", "ray", "mlflow"},
    "vitrail.models.weights": {"ray", "mlflow", "vitrail.data", "vitrail.training", "vitrail.cluster"},
    "vitrail.data.doctor.page": {"torch", "ray", "mlflow"},
    "vitrail.data.doctor.preview": {"ray", "mlflow", "vitrail.models", "vitrail.evaluation"},
    "vitrail.data.stream": {"ray", "mlflow", "vitrail.models", "vitrail.training", "vitrail.evaluation"},
    "vitrail.evaluation.predictor": {"ray", "mlflow", "vitrail.training", "vitrail.cluster", "vitrail.tracking"},
    "vitrail.evaluation.onnx_export": {"ray", "mlflow", "onnx", "onnxruntime", "vitrail.training", "vitrail.tracking"},
    "vitrail.evaluation.split": {"ray", "mlflow", "vitrail.training", "vitrail.cluster", "vitrail.tracking"},
    "vitrail.training.checkpoint": {"ray", "mlflow", "vitrail.cluster", "vitrail.tracking"},
    "vitrail.tracking.registry": {"ray", "vitrail.cluster"},
    "vitrail.tracking.tracker": {"ray", "torch", "vitrail.cluster"},
    "vitrail.sweep.page": {"torch", "ray", "mlflow"},
    "vitrail.sweep.space": {"torch", "ray", "mlflow", "matplotlib"},
    "vitrail.cli": {"torch", "ray", "mlflow"},
    "vitrail.options": {"torch", "ray", "mlflow"},
}


def python(code: str) -> str:
    """Run code in a fresh interpreter at the root and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_top_level_holds_only_what_the_design_names() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


def test_platform_is_still_pythons_own() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.system())") in {"Linux", "Darwin", "Windows"}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each part, all modules that importing it loads; two interpreters at a time, since torch takes seconds."""
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(python, [f"import sys, {part}; print(' '.join(sys.modules))" for part in FORBIDDEN])
        return {part: set(text.split()) for part, text in zip(FORBIDDEN, texts, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("part", FORBIDDEN)
def test_part_imports_no_other_than_allowed(loaded: dict[str, set[str]], part: str) -> None:
    assert part in loaded[part]
    assert not loaded[part] & FORBIDDEN[part]
