"""People on a server that asks for names: what a viewer, a trainer and a promoter may do.

MLflow gives permissions on whole registered models, and whoever may add a version may also move an alias. So what is
in production is a registered model of its own: trainers write to NAME, promoters alone to NAME-production. Both are
made by the administrator, because MLflow makes whoever creates a model its manager.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vitrail.errors import UsageError
from vitrail.tracking.environment import TrackingError

MIN_PASSWORD_LENGTH = 12
"""MLflow's own rule."""


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
        UsageError: a role without models, a short password, or a viewer who exists already.
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
        server.post("2.0/mlflow/registered-models/create", name=production_name(model))
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
    if role is Role.TRAINER:
        # Runs of one experiment come from several people, so its creator alone is not enough.
        return [("experiment", "*", "EDIT"), *(("registered_model", model, "EDIT") for model in models)]
    if role is Role.PROMOTER:
        # Enough to add versions, to move an alias and to move it back; deleting is left to the administrator.
        return [("registered_model", production_name(model), "EDIT") for model in models]
    return []


@dataclass(frozen=True, kw_only=True)
class _Administration:
    """MLflow's REST interface, as the administrator; its Python client of users would load the whole server."""

    tracking_uri: str
    admin: Credentials

    def post(self, path: str, **body: str) -> bool:
        """Make something; False if it is there already."""
        return self.request("POST", path, **body) != "RESOURCE_ALREADY_EXISTS"

    def request(self, method: str, path: str, **body: str) -> str | None:
        """Send it; MLflow's code of an error that it may be right to pass over, or None."""
        from requests import RequestException, request

        url, signed = f"{self.tracking_uri.rstrip('/')}/api/{path}", (self.admin.name, self.admin.password)
        try:
            response = request(method, url, json=body, auth=signed, timeout=30)
        except RequestException as error:
            raise TrackingError(self.tracking_uri, f"it does not answer ({type(error).__name__})") from None
        if response.ok:
            return None
        try:
            answer = dict(response.json())
        except ValueError:
            answer = {}
        if answer.get("error_code") == "RESOURCE_ALREADY_EXISTS":
            return "RESOURCE_ALREADY_EXISTS"
        raise TrackingError(self.tracking_uri, _reason(response.status_code, answer))


def _reason(status: int, answer: dict[str, str]) -> str:
    if status == 401:
        return "the administrator's name or password is wrong"
    if status == 403:
        return "only an administrator may do this"
    if status == 404:
        return "it knows no users; start it with `vitrail server start --auth`"
    return f"{answer.get('message', 'no reason given')} ({status})"[:500]
