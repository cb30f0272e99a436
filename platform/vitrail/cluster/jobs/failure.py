"""From a failed job's log to what a person should read first."""

import re

_ERROR = re.compile(r"^error: ", re.MULTILINE)
_RANKS = re.compile(r"^\S+: (failed on rank .+)$", re.MULTILINE)
_MOST_LINES = 20


def reason_for_failure(log: str, message: str) -> str:
    """The error that ended a job, with its ranks: what our scripts print last, or the end of a traceback.

    `message` is Ray's, which counts where the job never printed a word.
    """
    found = list(_ERROR.finditer(log))
    if found:
        ranks = _RANKS.findall(log)
        return "\n".join([*ranks[-1:], _short(log[found[-1].end() :])])
    _, traceback, rest = log.rpartition("Traceback (most recent call last):\n")
    if traceback:
        # The frames are indented; the error's own lines, and what was printed after them, are not.
        return _short("\n".join(line for line in rest.splitlines() if line and not line.startswith(" ")))
    lines = log.strip().splitlines() if log.strip() else message.strip().splitlines()
    return "\n".join(lines[-3:])


def _short(text: str) -> str:
    return "\n".join(text.strip().splitlines()[:_MOST_LINES])
