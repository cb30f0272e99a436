"""The database behind a server: SQLite in a folder for one machine, PostgreSQL for a cluster.

Its address may hold a password, so it is never an argument of a process and never printed.
"""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError
from vitrail.tracking.environment import TrackingError
from vitrail.tracking.store import default_tracking_uri, ensure_store

BACKEND_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
"""MLflow's own variable for the address."""

_DRIVER = "postgresql+psycopg2"
_ELSEWHERE = f"put the whole address into {BACKEND_VARIABLE} or into a file for --backend-file, or the password alone \
into PGPASSWORD or ~/.pgpass"
_REQUEST_THREADS = 40
"""What one worker answers at a time. A request may need a second connection while it holds one, so a pool of no more
than this many can lock itself out: it then answers 400, which loses what was sent."""
_MAX_WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A database that is there, and how it is shared among a server's workers."""

    uri: str = field(repr=False)
    name: str
    workers: int = 1
    pool_size: int = _REQUEST_THREADS
    max_overflow: int = 20

    def environment(self) -> dict[str, str]:
        """What tells MLflow's server about it."""
        return {
            BACKEND_VARIABLE: self.uri,
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(self.pool_size),
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(self.max_overflow),
        }


def open_backend(root: Path, *, argument: str | None, file: Path | None, workers: int | None) -> Backend:
    """The database that the options name, or the environment, or else the one in `root`.

    Raises:
        UsageError: an address that is not supported, a password among the arguments, or a driver that is missing.
        TrackingError: PostgreSQL does not answer.
    """
    uri = _address(argument, file)
    if uri is None:
        if workers not in (None, 1):
            raise UsageError(f"--workers {workers}: SQLite takes one writer at a time; use PostgreSQL with --backend")
        return sqlite_backend(root)
    return _postgresql(_with_driver(uri), workers)


def sqlite_backend(root: Path) -> Backend:
    """The store in the folder `root`, made if it is not there. One worker: SQLite takes one writer at a time."""
    uri = default_tracking_uri(root)
    # Experiments of a new store belong to the server's clients, which cannot write to this machine's folders.
    ensure_store(uri, default_artifacts="mlflow-artifacts:/")
    return Backend(uri=uri, name=f"SQLite in {root}")


def _address(argument: str | None, file: Path | None) -> str | None:
    if argument is not None and file is not None:
        raise UsageError("--backend and --backend-file both name the database; give one of them")
    if file is not None:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise UsageError(f"cannot read --backend-file {file}: {error.strerror}") from None
    if argument is None:
        return os.environ.get(BACKEND_VARIABLE) or None
    if _has_password(_parse(argument)):
        raise UsageError(f"--backend holds a password, which everybody sees in the list of processes; {_ELSEWHERE}")
    return argument


def _with_driver(uri: str) -> str:
    """The address with its driver named: SQLAlchemy 2.1 would read a plain one as psycopg 3."""
    url = _parse(uri)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=_DRIVER)
    if url.drivername != _DRIVER:
        raise UsageError(
            f"a backend of kind {url.drivername!r} is not supported; give {_DRIVER}://USER@HOST/DATABASE, "
            "or --root FOLDER for SQLite in a folder"
        )
    if importlib.util.find_spec("psycopg2") is None:
        raise UsageError(
            "PostgreSQL needs the package psycopg2, which is not installed; it comes with the extra `postgresql`: "
            "uv sync --extra postgresql, or pip install 'vitrail[postgresql]'"
        )
    return str(url.render_as_string(hide_password=False))


def _postgresql(uri: str, workers: int | None) -> Backend:
    """Ask the database how many connections it takes, and share them among the workers."""
    name = _shown(uri)
    pool_size, max_overflow = _REQUEST_THREADS // 2, _REQUEST_THREADS // 2 + 5
    room = (_connections(uri, name) - 5) // (pool_size + max_overflow)  # 5: for people, and for migrations
    chosen = workers or max(1, min(_MAX_WORKERS, os.cpu_count() or 1, room))
    if chosen > room:
        wanted = chosen * (pool_size + max_overflow) + 5
        raise UsageError(
            f"{chosen} workers may need {wanted} connections, more than {name} takes; raise its max_connections "
            f"to {wanted + 3}, or use --workers {room}"
            if room
            else f"{name} takes too few connections; raise its max_connections to {wanted + 3}"
        )
    return Backend(uri=uri, name=name, workers=chosen, pool_size=pool_size, max_overflow=max_overflow)


def _connections(uri: str, name: str) -> int:
    """How many connections the database takes from ordinary users."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(uri, connect_args={"connect_timeout": 10})
    question = text("select current_setting('max_connections'), current_setting('superuser_reserved_connections')")
    try:
        with engine.connect() as connection:
            most, reserved = connection.execute(question).one()
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise TrackingError(name, f"the database does not answer: {reason}") from None
    finally:
        engine.dispose()
    return int(most) - int(reserved)


def _parse(uri: str) -> Any:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(uri)
    except (ArgumentError, ValueError):  # whose message would hold the address
        raise UsageError(
            f"the backend is not an address such as {_DRIVER}://USER@HOST:5432/DATABASE; special characters in a "
            "password are written as %XX"
        ) from None


def _has_password(url: Any) -> bool:
    return url.password is not None or "password" in url.query


def _shown(uri: str) -> str:
    """The address as it may be printed."""
    url = _parse(uri)
    return str(url.set(password=None, query={}).render_as_string(hide_password=True))
