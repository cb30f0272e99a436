"""What is read from a job's log is what its run or its sweep has printed."""

import pytest
from sample_sweep import trial

from vitrail.cluster.progress import TrainRates, TrainStatus, clock, progress_line
from vitrail.cluster.sweep_progress import trial_line
from vitrail.cluster.watching.job_progress import JobProgress, read_progress

RATES = TrainRates(loss=1.366, lr=6.01e-4, images_per_s=33.64, data_wait_share=0.07, seconds_left=93_784.0)
NOISE = "2026-11-23 10:24:54,584\tINFO job_manager.py:581 -- Runtime env is setting up.\nwarning: 3/4 of it  is slow\n"


def test_line_of_a_run_is_read_as_it_was_printed() -> None:
    status = TrainStatus("training", 400, 160_000, RATES, miou=0.27324)
    log = f"{NOISE}night  0/160000  starting\n{progress_line('night', status)}\n{NOISE}"
    assert read_progress(log) == JobProgress(
        unit="steps",
        done=400,
        total=160_000,
        phase="training",
        images_per_s=33.6,
        data_wait_share=0.07,
        seconds_left=93_784.0,
        miou=0.2732,
    )


def test_run_without_rates_or_score_has_none() -> None:
    progress = read_progress(progress_line("a run", TrainStatus("validating", 0, 60)))
    assert progress == JobProgress(unit="steps", done=0, total=60, phase="validating")
    undefined = read_progress(progress_line("a run", TrainStatus("training", 5, 60, miou=float("nan"))))
    assert undefined is not None and undefined.miou is not None and undefined.miou != undefined.miou


def test_sweep_is_counted_in_trials() -> None:
    finished = trial({"neck": "mln"}, 0.3125)
    log = NOISE + "".join(f"{trial_line(finished, over=over, trials=12)}\n" for over in (2, 3))
    progress = read_progress(log)
    assert progress == JobProgress(unit="trials", done=3, total=12, phase="finished", miou=0.3125)
    waiting = read_progress(trial_line(trial({"neck": "mln"}, None, status="waiting"), over=0, trials=12))
    assert waiting == JobProgress(unit="trials", done=0, total=12, phase="waiting")


@pytest.mark.parametrize("log", ["", NOISE, "error: no such thing\n", "night  12.1 images/s on 2 x CPU, fp32\n"])
def test_log_without_progress_has_none(log: str) -> None:
    assert read_progress(log) is None


def test_clock_goes_on_after_a_day() -> None:
    assert clock(65) == "00:01:05"
    assert clock(93_784) == "26:03:04"
