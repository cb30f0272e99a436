"""The local store: one SQLite file and one folder of artifacts, made once, safe for several processes.

Imports nothing of MLflow until a store has to be made, so that asking for its address costs nothing.
"""

import fcntl
import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

_SQLITE = "sqlite:///"


def default_tracking_uri(root: Path) -> str:
    """Address of the store in the folder `root` (absolute, so that workers in other folders mean the same)."""
    return f"{_SQLITE}{root.resolve() / 'mlflow.db'}"


def is_http(tracking_uri: str) -> bool:
    """Whether a server is behind the address, rather than a local store."""
    return tracking_uri.startswith(("http://", "https://"))


def local_store(tracking_uri: str) -> Path | None:
    """The folder of a local store's database; None for a server."""
    database = _database(tracking_uri)
    return database.parent if database else None


def ensure_store(tracking_uri: str, *, default_artifacts: str | None = None) -> None:
    """Create the tables of a local store, in WAL mode, unless they exist; does nothing for a server.

    Processes that come at the same time wait for the first: MLflow's own first use races with itself. The experiment
    that MLflow makes by itself keeps its files in `default_artifacts`, or else beside the database.
    """
    database = _database(tracking_uri)
    if database is None or _has_schema(database):
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{database}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _has_schema(database):
            _create(tracking_uri, database, default_artifacts or (database.parent / "artifacts").as_uri())


def artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Where a new experiment of a local store keeps its files: beside the database; a server decides for itself."""
    database = _database(tracking_uri)
    if database is None:
        return None
    return (database.parent / "artifacts" / re.sub(r"[^\w.-]+", "-", experiment)).as_uri()


def _database(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def _has_schema(database: Path) -> bool:
    if not database.exists():
        return False
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        try:
            (count,) = connection.execute("select count(*) from alembic_version").fetchone()
        except sqlite3.OperationalError:
            return False
    return bool(count == 1)


def _create(tracking_uri: str, database: Path, default_artifacts: str) -> None:
    from vitrail.tracking.environment import quiet_environment

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")  # kept in the file; four times the writes per second
    quiet_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    store: Any = SqlAlchemyStore
    store(tracking_uri, default_artifacts).engine.dispose()
