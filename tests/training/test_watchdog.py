"""The watchdog of a worker, in processes that really hang."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitrail.training.watchdog import read_stalls, stall_file

PROGRAM = """
import sys, threading, time
from pathlib import Path
from vitrail.training.watchdog import Watchdog

def waiting_for_a_disk(beats):
    for _ in range(beats):
        time.sleep(0.2)
        watchdog.beat("step 12: waiting for a batch")
    {hang}

def train_worker(beats):
    waiting_for_a_disk(beats)

with Watchdog(Path(sys.argv[1]), timeout_s=0.6) as watchdog:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    train_worker(int(sys.argv[2]))
"""
HANGS = {
    "in Python": "threading.Event().wait()",
    "holding Python's lock": "import ctypes; ctypes.PyDLL(None).sleep(60)",
    "not at all": "return",
}


def run(path: Path, hang: str, *, beats: int = 1) -> tuple[int, float]:
    begin = time.monotonic()
    program = PROGRAM.format(hang=HANGS[hang])
    done = subprocess.run([sys.executable, "-c", program, str(path), str(beats)], timeout=50, check=False)
    return done.returncode, time.monotonic() - begin


@pytest.mark.parametrize("hang", ["in Python", "holding Python's lock"])
def test_worker_that_hangs_is_ended_and_leaves_its_stack(tmp_path: Path, hang: str) -> None:
    code, seconds = run(stall_file(tmp_path, 3), hang)
    assert code == 1
    assert seconds < 30
    (stall,) = read_stalls(tmp_path)
    assert (stall.rank, stall.doing) == (3, "step 12: waiting for a batch")
    assert "in waiting_for_a_disk" in stall.stack and "in train_worker" in stall.stack
    assert str(stall).startswith("rank 3 hung at step 12: waiting for a batch")


def test_worker_that_goes_on_is_left_alone_and_leaves_nothing(tmp_path: Path) -> None:
    path = stall_file(tmp_path, 0)
    assert run(path, "not at all", beats=8)[0] == 0  # longer in all than the time-out
    assert not path.exists()


def test_first_to_hang_comes_first(tmp_path: Path) -> None:
    for order, rank in enumerate((1, 0)):
        path = stall_file(tmp_path, rank)
        path.write_text(f"step {order}\nTimeout (0:00:01)!\nThread 0x1 (most recent call first):\n  File x in y\n")
        os.utime(path, (order, order))
    stall_file(tmp_path, 2).write_text("step 5: computing it\n")  # ended without hanging
    assert [stall.rank for stall in read_stalls(tmp_path)] == [1, 0]
