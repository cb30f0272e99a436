"""People on a server that asks for names: what a viewer, a trainer and a promoter may do.

MLflow gives permissions on whole registered models, and whoever may add a version may also move an alias. So what is
in production is a registered model of its own: trainers write to NAME, promoters alone to NAME-production. Both are
made by the administrator, because MLflow makes whoever creates a model its manager.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vitrail.errors import UsageError
from vitrail.tracking.environment import TrackingError

MIN_PASSWORD_LENGTH = 12
"""MLflow's own rule."""

_EXISTS = "RESOURCE_ALREADY_EXISTS"


class Role(StrEnum):
    """What somebody may do beyond reading everything."""

    VIEWER = "viewer"
    TRAINER = "trainer"
    PROMOTER = "promoter"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A name and its password."""

    name: str
    password: str = field(repr=False)


def production_name(model: str) -> str:
    """The registered model that holds what of `model` is in production."""
    return f"{model}-production"


def add_user(user: Credentials, role: Role, models: Sequence[str], *, tracking_uri: str, admin: Credentials) -> bool:
    """Create a user, or give a further role to one who exists, whose password stays; whether it was created.

    Raises:
        UsageError: a role without models, a short password, a viewer who exists already, or somebody manages what is
            in production.
        TrackingError: the server refused it or is not there.
    """
    if (role is Role.VIEWER) != (not models):
        raise UsageError(
            "a viewer reads everything: leave --models out"
            if models
            else f"a {role} needs --models: the registered models that this is about"
        )
    if len(user.password) < MIN_PASSWORD_LENGTH:
        raise UsageError(f"a password needs {MIN_PASSWORD_LENGTH} characters or more")
    server = _Administration(tracking_uri=tracking_uri, admin=admin)
    for model in models:
        server.post("2.0/mlflow/registered-models/create", name=model)
        if not server.post("2.0/mlflow/registered-models/create", name=production_name(model)):
            _check_managers(server, production_name(model))
    created = server.post("2.0/mlflow/users/create", username=user.name, password=user.password)
    if not created and role is Role.VIEWER:
        raise UsageError(f"{user.name} exists already, and everybody may read")
    try:
        for kind, pattern, level in _grants(role, models):
            grant = {"username": user.name, "resource_type": kind, "resource_id": pattern, "permission": level}
            server.post("3.0/mlflow/users/permissions/grant", **grant)
    except TrackingError:
        if created:  # or a repeated command would find a user whose password nobody was told
            server.request("DELETE", "2.0/mlflow/users/delete", username=user.name)
        raise
    return created


def _grants(role: Role, models: Sequence[str]) -> list[tuple[str, str, str]]:
    """Kind, name and level of what a role adds to reading."""
    if role is Role.VIEWER:
        return []
    # Runs of one experiment come from several people, so its creator alone is not enough. Promoters write too: verdicts
    # and evaluations, on the candidates that they judge.
    grants = [("experiment", "*", "EDIT"), *(("registered_model", model, "EDIT") for model in models)]
    if role is Role.PROMOTER:
        # Enough to add versions, to move an alias and to move it back; deleting is left to the administrator.
        grants += [("registered_model", production_name(model), "EDIT") for model in models]
    return grants


def _check_managers(server: "_Administration", model: str) -> None:
    """Refuse a model that somebody made before the administrator did: its maker could do anything with it."""
    users = server.request("GET", "2.0/mlflow/users/list")["users"]
    people = [user["username"] for user in users if not user["is_admin"]]
    about = {"resource_type": "registered_model", "resource_id": model}
    levels = {
        name: server.request("GET", "3.0/mlflow/users/permissions/get", username=name, **about)["permission"]
        for name in people
    }
    managers = [name for name, level in levels.items() if level == "MANAGE"]
    if managers:
        raise UsageError(
            f"{model} was made by {', '.join(managers)}, who could therefore put anything into production; look at it "
            "and delete it in MLflow's pages, signed in as the administrator, and repeat this"
        )


@dataclass(frozen=True, kw_only=True)
class _Administration:
    """MLflow's REST interface, as the administrator; its Python client of users would load the whole server."""

    tracking_uri: str
    admin: Credentials

    def post(self, path: str, **body: str) -> bool:
        """Make something; False if it is there already."""
        return self.request("POST", path, **body).get("error_code") != _EXISTS

    def request(self, method: str, path: str, **values: str) -> dict[str, Any]:
        """MLflow's answer, which may be that something exists already."""
        from requests import RequestException, request

        url, signed = f"{self.tracking_uri.rstrip('/')}/api/{path}", (self.admin.name, self.admin.password)
        sent = {"params": values} if method == "GET" else {"json": values}
        try:
            response = request(method, url, auth=signed, timeout=30, **sent)  # type: ignore[arg-type]
        except RequestException as error:
            raise TrackingError(self.tracking_uri, f"it does not answer ({type(error).__name__})") from None
        try:
            answer = dict(response.json()) if response.content else {}
        except ValueError:
            answer = {}
        if response.ok or answer.get("error_code") == _EXISTS:
            return answer
        raise TrackingError(self.tracking_uri, _reason(response.status_code, answer))


def _reason(status: int, answer: dict[str, Any]) -> str:
    if status == 401:
        return "the administrator's name or password is wrong"
    if status == 403:
        return "only an administrator may do this"
    if status == 404:
        return "it knows no users; start it with `vitrail server start --auth`"
    return f"{answer.get('message', 'no reason given')} ({status})"[:500]
