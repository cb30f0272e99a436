"""The other side of `answering`: a script that runs in a process of its own and is asked again and again."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vitrail.errors import UsageError


class Responder:
    """A running script of this folder."""

    def __init__(self, process: "subprocess.Popen[str]", complaint: str) -> None:
        self._process, self._complaint = process, complaint

    @classmethod
    @contextmanager
    def start(
        cls,
        python: Path | str,
        script: str,
        arguments: Sequence[object] = (),
        *,
        complaint: str = "a measurement failed; its own message is above",
    ) -> Iterator[Self]:
        """Run `script` by `python`; it is ended with the block. `complaint` is what is said when it dies.

        Raises:
            UsageError: it died.
        """
        command = [str(python), str(Path(__file__).with_name(script)), *map(str, arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield cls(process, complaint)
            finally:
                process.terminate()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UsageError(self._complaint) from None
        line = self._process.stdout.readline()
        if not line:
            raise UsageError(self._complaint)
        answer: dict[str, Any] = json.loads(line)
        return answer


NO_PEER = "the Python of --peer-python could not run mmsegmentation; its own message is above"
