"""The code that goes along with a job: what git knows of this checkout, as one file that Ray unpacks everywhere."""

import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import vitrail
from vitrail.errors import UsageError
from vitrail.revision import revision_of

UPLOAD_LIMIT_BYTES = 100 * 1024**2
"""What Ray's dashboard (2.60) takes in one request."""
_PACKAGE = Path("platform/vitrail")
_STAYS = ("tests", "data", "runs", ".ci")
"""Folders at the top that no job needs, also where git knows them."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""One date for all files, so that the same code is the same upload, which Ray then skips."""


class CodeTooLargeError(UsageError):
    """The checkout holds more than Ray takes."""

    def __init__(self, size_bytes: int, limit_bytes: int, largest: tuple[str, ...]) -> None:
        super().__init__(size_bytes, limit_bytes, largest)
        self.size_bytes, self.limit_bytes, self.largest = size_bytes, limit_bytes, largest

    def __str__(self) -> str:
        return (
            f"the code is {mebibytes(self.size_bytes)} packed, and Ray takes {mebibytes(self.limit_bytes)}; the "
            f"largest files are {', '.join(self.largest)}: name them in .gitignore, and keep data in s3:// or a shared "
            "folder"
        )


@dataclass(frozen=True)
class CodePackage:
    """The files of a checkout that go along."""

    root: Path
    files: tuple[Path, ...]
    """Relative to the root."""
    revision: str

    @classmethod
    def of(cls, script: Path) -> "CodePackage":
        """The checkout that a script lies in.

        Raises:
            UsageError: there is no such file, or it is not in a git checkout of Vitrail.
        """
        if not script.is_file():
            raise UsageError(f"{script} is not a file; give the path of a script, such as jobs/train.py")
        script = script.resolve()
        root = next((parent for parent in script.parents if (parent / _PACKAGE / "__init__.py").is_file()), None)
        if root is None:
            raise UsageError(f"{script} is not in a checkout of Vitrail, whose code a job takes along")
        listed = _git_files(root)
        files = tuple(path for path in listed if path.parts[0] not in _STAYS and (root / path).is_file())
        if script.relative_to(root) not in files:
            raise UsageError(f"{script} would stay here: it is in .gitignore, or in one of {', '.join(_STAYS)}")
        return cls(root=root, files=files, revision=revision_of(root / _PACKAGE))

    def write(self, path: Path, *, limit_bytes: int = UPLOAD_LIMIT_BYTES) -> int:
        """Pack the files into a .zip, whose bytes depend on their contents alone; its size in bytes.

        Raises:
            CodeTooLargeError: it is more than the limit.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files:
                entry = zipfile.ZipInfo(str(file), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, (self.root / file).read_bytes())
        size = path.stat().st_size
        if size > limit_bytes:
            by_size = sorted(self.files, key=lambda file: (self.root / file).stat().st_size, reverse=True)
            raise CodeTooLargeError(size, limit_bytes, tuple(map(str, by_size[:3])))
        return size

    def left_out(self) -> list[str]:
        """What of the checkout's top stays here."""
        sent = {file.parts[0] for file in self.files}
        return sorted(entry.name for entry in self.root.iterdir() if entry.name not in sent)


def pack_own_package(path: Path) -> None:
    """Pack this very package, checkout or not, so that it can be imported where it is unpacked."""
    package = Path(vitrail.__file__).parent
    pack_folder(package, path, under=package.name)


def pack_folder(root: Path, path: Path, *, under: str = "") -> None:
    """Pack all files of a folder, such as one that Ray has unpacked a job's code into."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, under / file.relative_to(root))


def mebibytes(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1024**2:.1f} MiB"


def _git_files(root: Path) -> list[Path]:
    """What git tracks, or would if it were added: nothing that is ignored."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"git is needed to tell code from what stays here: {error.strerror}") from None
    if done.returncode != 0:
        raise UsageError(f"{root} is not a git checkout, so code cannot be told from what stays here; try `git init`")
    return sorted({Path(name) for name in done.stdout.split("\0") if name})
