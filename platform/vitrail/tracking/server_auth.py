"""Who may sign in to a server: its secrets, made once, and MLflow's configuration for them, in a folder of their own.

MLflow keeps users and what they may do in a database beside them. Everybody who can sign in may read.
"""

import json
import os
import secrets
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vitrail.errors import UsageError

ADMIN = "admin"
SECRETS_FILE = "secrets.json"

_CONFIG = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# Checking a password costs 50 ms of a core, so one that was right is right for a minute.
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, kw_only=True)
class ServerSecrets:
    """What the server must know and nobody else: the administrator's password, and the key of its forms."""

    admin_password: str = field(repr=False)
    flask_secret_key: str = field(repr=False)


def auth_environment(folder: Path) -> dict[str, str]:
    """What makes MLflow's server ask for names and passwords; the secrets in `folder` are made at the first start."""
    found = ensure_secrets(folder)
    database, config = (folder / "users.db").resolve(), folder / "basic_auth.ini"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")
    _write_private(config, _CONFIG.format(database=str(database).replace("%", "%%")))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config.resolve()),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": found.admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": found.flask_secret_key,
    }


def ensure_secrets(folder: Path) -> ServerSecrets:
    """The secrets in `folder`, made unless they are there.

    Raises:
        UsageError: others may read the folder or the file.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / SECRETS_FILE).exists():
        made = ServerSecrets(admin_password=new_password(), flask_secret_key=secrets.token_hex(32))
        _write_private(folder / SECRETS_FILE, json.dumps(asdict(made), indent=2), replace=False)
    return load_secrets(folder)


def load_secrets(folder: Path) -> ServerSecrets:
    """The secrets in `folder`.

    Raises:
        UsageError: there are none, or others may read them.
    """
    file = folder / SECRETS_FILE
    if not file.exists():
        raise UsageError(f"{file} does not exist; `vitrail server start --auth` makes it")
    for path in (folder, file):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(f"{path} holds secrets, and others may read it; chmod go= {path}")
    try:
        return ServerSecrets(**json.loads(file.read_text()))
    except (TypeError, ValueError):
        raise UsageError(f"{file} does not hold a server's secrets; move it away to have new ones made") from None


def new_password() -> str:
    """A password that nobody guesses."""
    return secrets.token_urlsafe(18)


def _write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a file that nobody else can read, whole or not at all; without `replace`, a file that is there stays."""
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    if replace:
        aside.replace(path)
        return
    with suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()
