"""What a run lost to restarts: kept in a small file beside it, which each start reads and each report rewrites."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CONTINUITY = "continuity.json"


@dataclass
class Continuity:
    """Where a run stood when it was last heard of, and what restarts have cost it."""

    step: int = 0
    at_s: float = 0.0
    restarts: int = 0
    lost_s: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> "Continuity":
        """What the file says; a new one where there is none, or where it is damaged."""
        try:
            return cls(**json.loads((folder / CONTINUITY).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Replace the file."""
        aside = folder / f"{CONTINUITY}.writing"
        aside.write_text(json.dumps(asdict(self)))
        aside.rename(folder / CONTINUITY)


class RestartClock:
    """Counts the time from the last step known before a start until that step is reached again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.kept = Continuity.load(folder)
        self._catching_up = self.kept.at_s > 0
        if self._catching_up:
            self.kept.restarts += 1

    def reached(self, step: int) -> None:
        """Note that the run stands after `step` now."""
        now = time.time()
        if self._catching_up and step < self.kept.step:
            return
        if self._catching_up:
            self.kept.lost_s += now - self.kept.at_s
            self._catching_up = False
        self.kept.step, self.kept.at_s = step, now
        self.kept.save(self._folder)
