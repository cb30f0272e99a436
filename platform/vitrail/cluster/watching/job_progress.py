"""From a job's log to how far its run, or its sweep, is: all that the dashboard's address tells of that."""

import re
from dataclasses import dataclass

_RUN = re.compile(r"^(?P<name>\S.*?)  (?P<done>\d+)/(?P<total>\d+)  (?P<status>\S.*)$")
_SWEEP = re.compile(r"^\[(?P<done>\d+)/(?P<total>\d+)\] (?P<status>\S.*)$")
_RATE = re.compile(r"([\d.]+) img/s")
_WAIT = re.compile(r"data wait (\d+)%")
_LEFT = re.compile(r"(\d+):(\d\d):(\d\d) left")
_MIOU = re.compile(r"mIoU ([\d.]+|nan)%")
_OF_A_STATUS = (_RATE, _WAIT, _LEFT, _MIOU)


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """What a job last said of itself."""

    unit: str
    """What is counted: `steps` of a run, or `trials` of a sweep."""
    done: int
    total: int
    phase: str
    """What the workers do; of a sweep, its last news."""
    images_per_s: float | None = None
    data_wait_share: float | None = None
    seconds_left: float | None = None
    miou: float | None = None
    """0..1; of a sweep, of the trial of the last news."""


def read_progress(log: str) -> JobProgress | None:
    """The last progress in a log, or in the end of one; None where there is none."""
    for line in reversed(log.splitlines()):
        found = _read_line(line)
        if found is not None:
            return found
    return None


def _read_line(line: str) -> JobProgress | None:
    sweep = _SWEEP.match(line)
    match = sweep or _RUN.match(line)
    if match is None:
        return None
    parts = match["status"].split("  ")
    rate, wait, left, miou = (_first(pattern, parts) for pattern in _OF_A_STATUS)
    return JobProgress(
        unit="trials" if sweep else "steps",
        done=int(match["done"]),
        total=int(match["total"]),
        phase=parts[-1] if sweep else parts[0],
        images_per_s=float(rate[1]) if rate else None,
        data_wait_share=int(wait[1]) / 100 if wait else None,
        seconds_left=int(left[1]) * 3600 + int(left[2]) * 60 + int(left[3]) if left else None,
        miou=float(miou[1]) / 100 if miou else None,
    )


def _first(pattern: re.Pattern[str], parts: list[str]) -> re.Match[str] | None:
    return next((found for part in parts if (found := pattern.fullmatch(part))), None)
