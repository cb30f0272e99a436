"""Which code this is: a commit, a release, or at least a digest of the sources."""

import hashlib
import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import vitrail


@cache
def code_revision() -> str:
    """What the lineage of a model says of the code that made it; found out once per process.

    A job on a cluster runs a copy, and is told in `VITRAIL_REVISION` of what.
    """
    return os.environ.get("VITRAIL_REVISION") or revision_of(Path(vitrail.__file__).parent)


def revision_of(package: Path) -> str:
    """The commit of the checkout that `package` lies in, with `+changes` where tracked files differ from it.

    `release X` for an installed wheel, and `sources SHA256` for a copy that is neither, as Ray makes on its workers.
    """
    # A virtual environment may lie in the checkout of something else: only a file that git tracks is of the checkout.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no")
        if commit is not None:
            return commit.strip() + ("+changes" if changed else "")
    release = _release(package)
    if release is not None:
        return f"release {release}"
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"sources {digest.hexdigest()[:16]}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints in the folder, or None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _release(package: Path) -> str | None:
    """The version of the installed distribution that brought this very folder, and not a link to it."""
    try:
        installed = distribution(package.name)
    except PackageNotFoundError:
        return None
    brought = any(
        Path(str(file.locate())).resolve() == (package / "__init__.py").resolve() for file in installed.files or []
    )
    return installed.version if brought else None
