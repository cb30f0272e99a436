"""A Ray of this machine alone: it listens on the loopback address, and nobody else can read its token.

By itself, the Ray that `ray.init` starts listens on every address of the machine, and its token is as readable as the
umask makes it. Uses two of Ray's own names that are not public; tests/cluster/test_security_local.py holds them.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._private import ray_constants

from vitrail.errors import UsageError


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let the Ray that is started inside listen on 127.0.0.1 alone, as Ray does on macOS and Windows."""
    # Ray reads its variable for this while it is imported, and an address of 127.0.0.1 that it is given it replaces by
    # that of the network.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def keep_token_private() -> None:
    """Make the token where Ray would make it, or take others' right to read it away; whoever has it may run anything.

    Does nothing where Ray is told of another token, or to do without.

    Raises:
        UsageError: the file cannot be written, or is somebody else's.
    """
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_file():
            _write_token(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be kept from others ({error.strerror}); name another file in RAY_AUTH_TOKEN_PATH"
        ) from None


def _write_token(path: Path) -> None:
    """Whole and private from its first byte; of two processes at once, the first one's counts."""
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    with suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()
