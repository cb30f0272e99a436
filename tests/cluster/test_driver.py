"""One driver per run, and its request to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitrail.cluster.board import RunBoard
from vitrail.cluster.driver import RunBusyError, driver_host, hold_run, is_held, stop_on_sigterm

HOLDER = """
import sys, time
from pathlib import Path
from vitrail.cluster.driver import hold_run
with hold_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_run_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        assert driver_host(tmp_path)
        with pytest.raises(RunBusyError, match=f"process {holder.pid} on"), hold_run(tmp_path):
            pass
        holder.kill()
    assert not is_held(tmp_path)
    with hold_run(tmp_path):
        pass


def test_sigterm_becomes_a_request_on_the_board(ray_session: None) -> None:
    board, before = RunBoard.open("run"), signal.getsignal(signal.SIGTERM)
    try:
        assert board.stop_reason() is None
        with stop_on_sigterm(board):
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 30
            while board.stop_reason() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        assert board.stop_reason() == "SIGTERM"
    finally:
        board.close()
    assert signal.getsignal(signal.SIGTERM) is before
