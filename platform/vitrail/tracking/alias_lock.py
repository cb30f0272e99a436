"""One mover of an alias at a time.

MLflow has no compare-and-set, but it makes each registered model once: of all who make one of a certain name at the
same time, one is answered that it is made, the others that it exists. So a registered model stands for the lock while
an alias is moved, for well under a second; `vitrail.tracking.registry` does not list it.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from vitrail.errors import VitrailError
from vitrail.tracking.environment import TrackingError, connect, current_user, error_code, retry

LOCK_TAG = "vitrail.lock"
"""Tag of the registered model that stands for a lock: whoever holds it wrote this."""
_STALE_S = 60.0
"""A lock that the same mover has held for so long was left behind by one that was killed."""
_POLL_S = 0.1
_TIMEOUT_S = 20.0


class AliasBusyError(VitrailError):
    """Somebody else is moving the alias, and has been for too long to wait."""

    def __init__(self, name: str, alias: str, by: str, since: str) -> None:
        super().__init__(name, alias, by, since)
        self.name, self.alias, self.by, self.since = name, alias, by, since

    def __str__(self) -> str:
        return (
            f"{self.alias} of {self.name} is being moved by {self.by} since {self.since}; if that was interrupted, the "
            "same command succeeds in a minute (on a server with names: theirs, or an administrator's)"
        )


@contextmanager
def alias_lock(name: str, alias: str, *, tracking_uri: str, wait_s: float = 30.0) -> Iterator["Held"]:
    """Hold the lock of an alias; a lock that was left behind is taken over after a minute.

    Raises:
        AliasBusyError: somebody else holds it.
    """
    held = Held(connect(tracking_uri), tracking_uri, name, alias)
    held.acquire(wait_s)
    try:
        yield held
    finally:
        held.release()


class Held:
    """A lock while it is held."""

    def __init__(self, client: Any, tracking_uri: str, name: str, alias: str) -> None:
        self._client, self._tracking_uri = client, tracking_uri
        self._name, self._alias = name, alias
        self._lock = f"{name} ({alias} is being moved)"
        self._token = uuid.uuid4().hex

    def acquire(self, wait_s: float) -> None:
        """Wait for the lock, and take it over if its holder is gone."""
        started = time.monotonic()
        first_seen: dict[str, float] = {}
        while not self._try():
            holder = self._holder()
            token = holder.get(LOCK_TAG, "")
            since = first_seen.setdefault(token, time.monotonic())
            stale = time.monotonic() - since > _STALE_S or _age_s(holder) > _STALE_S
            if token and stale and self._take_away(token):
                continue
            if time.monotonic() - started > wait_s:
                raise AliasBusyError(self._name, self._alias, holder.get("by", "?"), holder.get("at", "?"))
            time.sleep(_POLL_S)

    def is_held(self) -> bool:
        """Whether it is still ours: a holder that was away for a minute has lost it."""
        return self._holder().get(LOCK_TAG) == self._token

    def release(self) -> None:
        """Give it back."""
        self._delete(self._token)

    def _try(self) -> bool:
        from mlflow.exceptions import MlflowException

        now = datetime.now(UTC).isoformat(timespec="seconds")
        tags = {LOCK_TAG: self._token, "by": current_user(), "at": now}

        def call() -> bool:
            try:
                self._client.create_registered_model(self._lock, tags=tags)
            except MlflowException as error:
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self.is_held()  # made by a call of ours whose answer was lost
            return True

        return retry(call, tracking_uri=self._tracking_uri, timeout_s=_TIMEOUT_S)

    def _take_away(self, token: str) -> bool:
        """Remove a lock that was left behind; False where the server leaves that to whoever made it."""
        try:
            self._delete(token)
        except TrackingError:
            return False
        return True

    def _holder(self) -> dict[str, str]:
        """Tags of the lock; none where it is free."""
        from mlflow.exceptions import MlflowException

        def call() -> dict[str, str]:
            try:
                return dict(self._client.get_registered_model(self._lock).tags)
            except MlflowException as error:
                if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}

        return retry(call, tracking_uri=self._tracking_uri, timeout_s=_TIMEOUT_S)

    def _delete(self, token: str) -> None:
        """Remove the lock if it is that holder's."""
        from mlflow.exceptions import MlflowException

        def call() -> None:
            if self._holder().get(LOCK_TAG) != token:
                return
            try:
                self._client.delete_registered_model(self._lock)
            except MlflowException as error:
                if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                    raise

        retry(call, tracking_uri=self._tracking_uri, timeout_s=_TIMEOUT_S)


def _age_s(holder: dict[str, str]) -> float:
    """By the clocks of its holder and of this machine."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(holder["at"])).total_seconds()
    except (KeyError, ValueError):
        return 0.0
