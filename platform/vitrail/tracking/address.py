"""MLflow's address as a user gives it: a password in it is moved to where it is not stored and not shown.

    uri = without_password("https://ada:secret@mlflow.example")      # https://mlflow.example

An address ends in run.json, in MLflow's own records, and in what is printed. MLflow's client finds name and password in
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PostgreSQL's library in PGPASSWORD: set in this process, they are
inherited by the Ray that is started here and by its workers, and stored nowhere.
"""

import os
from urllib.parse import unquote, urlsplit, urlunsplit

from vitrail.errors import UsageError
from vitrail.secrets import holds_password, mask
from vitrail.tracking.store import is_http


def without_password(tracking_uri: str | None) -> str | None:
    """The address without its password, which is set in this process's environment for those who need it.

    Raises:
        UsageError: a password in an address of a kind whose client has no other place for it.
    """
    if tracking_uri is None or not (holds_password(tracking_uri) or mask(tracking_uri, {}) != tracking_uri):
        return tracking_uri
    try:
        parts = urlsplit(tracking_uri)
        name, password, place = unquote(parts.username or ""), unquote(parts.password or ""), parts.netloc
    except ValueError:  # whose message would hold the address
        password = ""
    if not password:
        raise UsageError(
            f"{mask(tracking_uri)} holds a secret in a place from which it would get into records; write it as "
            "SCHEME://NAME:PASSWORD@HOST, special characters as %XX"
        )
    host = place.rpartition("@")[2]
    if is_http(tracking_uri):
        os.environ |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
        return urlunsplit(parts._replace(netloc=host))
    if parts.scheme.partition("+")[0] in ("postgresql", "postgres"):
        os.environ["PGPASSWORD"] = password
        user = parts.netloc.partition(":")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@{host}"))
    raise UsageError(
        f"{mask(tracking_uri)} has a password in it, which would be stored with the run; name a server of MLflow "
        "(`vitrail server start`) that has the database behind it"
    )
