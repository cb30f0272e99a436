"""Which code this is: a commit, a release, or at least a digest of the sources."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import vitrail


@cache
def code_revision() -> str:
    """What the lineage of a model says of the code that made it; found out once per process."""
    return revision_of(Path(vitrail.__file__).parent)


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
    if _is_installed(package):
        return f"release {vitrail.__version__}"
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


def _is_installed(package: Path) -> bool:
    """Whether an installed distribution brought this very folder, not a link to it."""
    try:
        files = distribution(package.name).files or []
    except PackageNotFoundError:
        return False
    return any(Path(file.locate()).resolve() == (package / "__init__.py").resolve() for file in files)
