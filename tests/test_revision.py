"""The revision of the sources, for a checkout, an installed wheel and a copy."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vitrail.revision import code_revision, revision_of


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package in it, everything committed."""
    package = tmp_path / "repository" / "src" / "streets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    git(tmp_path / "repository", "init", "--quiet")
    git(tmp_path / "repository", "add", ".")
    git(tmp_path / "repository", "commit", "--quiet", "--message", "first")
    return package


def test_checkout_is_known_by_its_commit_and_whether_tracked_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert revision_of(checkout) == commit
    (checkout / "notes.txt").write_text("not tracked")
    assert revision_of(checkout) == commit
    (checkout / "__init__.py").write_text("a = 2\n")
    assert revision_of(checkout) == f"{commit}+changes"


def test_copy_is_known_by_its_sources_alone_also_inside_another_checkout(checkout: Path, tmp_path: Path) -> None:
    inside = Path(shutil.copytree(checkout, checkout.parents[1] / "site-packages" / "streets"))
    outside = Path(shutil.copytree(checkout, tmp_path / "streets"))
    assert re.fullmatch(r"sources [0-9a-f]{16}", revision_of(outside))
    assert revision_of(inside) == revision_of(outside)
    (outside / "__init__.py").write_text("a = 2\n")
    assert revision_of(inside) != revision_of(outside)


def test_installed_package_is_known_by_its_release() -> None:
    assert revision_of(Path(pytest.__file__).parent) == f"release {pytest.__version__}"


def test_this_package_has_a_revision() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|release .+|sources [0-9a-f]{16}", code_revision())
