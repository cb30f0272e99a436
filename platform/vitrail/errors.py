"""What can go wrong, as types: `UsageError` for what a user can put right in the command, `DataError` for bad data.

Every class passes all its arguments to `super().__init__` and formats itself in `__str__`, because an exception that
crosses Ray is rebuilt from its arguments on the driver.
"""

import difflib
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vitrail.secrets import mask


class VitrailError(Exception):
    """Base of everything this package raises on purpose; shown without a traceback."""

    exit_code = 1


class UsageError(VitrailError, ValueError):
    """A wrong command or configuration; the message says how to put it right."""

    exit_code = 2


class DataError(VitrailError):
    """A data set that cannot be used as it is."""


class UnknownNameError(UsageError):
    """A name that is not among those known, answered with the closest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = tuple(known)
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        close = difflib.get_close_matches(self.name, self.known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self.known)}"
        return f"unknown {self.kind} {self.name!r}; {hint}"


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn a `VitrailError`, also one raised inside a Ray worker, into its message on stderr and its exit code.

    Any other error is a fault of ours and keeps its traceback. No secret is in what is printed.
    """
    try:
        yield
    except Exception as error:
        known = _first_vitrail_error(error)
        if known is None:
            text = "".join(traceback.format_exception(error))
            if mask(text) == text:
                raise
            print(mask(text), end="", file=sys.stderr)
            raise SystemExit(1) from None
        print(f"error: {mask(str(known))}", file=sys.stderr)
        raise SystemExit(known.exit_code) from None


def _first_vitrail_error(error: BaseException) -> VitrailError | None:
    """Search what Ray wraps an error in: `cause` of a task, `worker_failures` of a training run."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        if isinstance(item, VitrailError):
            return item
        seen.add(id(item))
        pending += [item.__cause__, getattr(item, "cause", None), *getattr(item, "worker_failures", {}).values()]
    return None
