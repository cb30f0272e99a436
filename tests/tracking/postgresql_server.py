"""A PostgreSQL of the tests' own, from Debian's packages: another folder, port and user than any that runs here."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow_server import free_port

PASSWORD = "p%40ss word/of:tests"


@dataclass(frozen=True, kw_only=True)
class PostgreSQL:
    """Where it listens."""

    port: int

    def uri(self, *, scheme: str = "postgresql", password: str | None = PASSWORD) -> str:
        from urllib.parse import quote

        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"{scheme}://vitrail{secret}@127.0.0.1:{self.port}/postgres"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A database that is there and empty; skips the test where it cannot be started."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), default=None)
    if binaries is None or not (binaries / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    account = _account()
    # Not pytest's folder, which nobody but its owner may enter.
    root = Path(tempfile.mkdtemp(prefix="vitrail-postgresql-"))
    try:
        (root / "password").write_text(PASSWORD)
        if "user" in account:
            for path in (root, root / "password"):
                shutil.chown(path, account["user"], account["group"])
        data, port = root / "data", free_port()

        def call(command: str, *arguments: str) -> None:
            done = subprocess.run(
                [binaries / command, "-D", data, *arguments],
                cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, **account,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr

        call("initdb", "--username=vitrail", "--auth=scram-sha-256", f"--pwfile={root / 'password'}", "--no-sync")
        options = f"-p {port} -k {root} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-w", "-t", "120", "-l", str(root / "log"), "-o", options, "start")
        try:
            yield PostgreSQL(port=port)
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root)


def _account() -> dict[str, str]:
    """Who it runs as: PostgreSQL refuses to be root."""
    return {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
