"""Files that a living process holds."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.cluster.holding import HeldError, hold, is_held

HOLDER = """\
import signal, sys
from pathlib import Path
from vitrail.cluster.holding import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_file_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    assert not is_held(path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert is_held(path)
        with pytest.raises(HeldError, match=f"held by process {holder.pid} on"), hold(path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert not is_held(path)
    with hold(path):
        assert is_held(path)
