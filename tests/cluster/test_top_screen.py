"""`vitrail top`'s screen of a busy cluster, of one with nothing on it, and on screens of several sizes."""

import re
from dataclasses import replace

import pytest
from rich.console import Console
from sample_view import TRAINING, busy_view, job, machine

from vitrail.cluster.watching.top_screen import screen
from vitrail.cluster.watching.view import ClusterView, Gpu, Use, WatchedJob

ADDRESS = "http://127.0.0.1:8265"


def rendered(view: ClusterView, *, width: int = 80, height: int | None = None) -> list[str]:
    """The lines of a screen so wide, without the spaces at their ends."""
    console = Console(width=width, height=1000, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(screen(view, ADDRESS, width=width, height=height))
    return [line.rstrip() for line in captured.get().splitlines()]


def row(lines: list[str], name: str) -> list[str]:
    """The cells of the line that begins with a name."""
    (line,) = [line for line in lines if line.startswith(name)]
    return line.split()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_number_is_whole_on_narrow_and_wide_screens(width: int) -> None:
    lines = rendered(busy_view(), width=width)
    assert max(map(len, lines)) <= width
    assert "1412.3" in row(lines, "upernet") and "43.1%" in row(lines, "upernet")
    whole_steps = "120310/160000" if width >= 110 else "120k/160k"
    assert whole_steps in row(lines, "scenes")
    # Only names are cut.
    assert not re.search(r"(?<!\S)[\d./k]+…", "\n".join(lines[1:]))
    assert row(lines, "10.0.0.8")[1:5] == ["48/48", "71%", "61/186", "3.5/56"]


@pytest.mark.parametrize("height", [12, 24, 40, 70])
@pytest.mark.parametrize(("jobs", "machines"), [(50, 9), (50, 1), (9, 40), (9, 9)])
def test_screen_is_never_longer_than_the_terminal(height: int, jobs: int, machines: int) -> None:
    view = busy_view(jobs=jobs, machines=machines)
    lines = rendered(view, height=height)
    assert len(lines) <= height
    assert [line for line in lines if line.startswith("upernet")]
    shown = [line for line in lines if " ada " in line or "grace" in line]
    left_out = sum(int(found) for found in re.findall(r"and (\d+) more jobs?;", "\n".join(lines)))
    assert len(shown) + left_out == jobs


def test_only_runs_that_take_steps_count_and_show_rates() -> None:
    view = busy_view()
    lines = rendered(view, width=120)
    assert view.images_per_s == pytest.approx(1412.3 + 87.7 + 300)
    assert lines[0].startswith("1800.0 images/s   6 running, 3 waiting   CPUs 384/384   GPUs 32/32")
    assert row(lines, "validates")[1] == "validating"
    assert row(lines, "restarts")[1] == "starting"
    assert row(lines, "yields")[1] == "yielding" and row(lines, "waits0")[1] == "queued"
    for name in ("validates", "restarts", "ended9"):
        assert "1412.3" not in row(lines, name)
    assert "7/12 trials" in next(line for line in lines if line.startswith("necks"))


def test_job_whose_workers_ray_does_not_know_is_believed() -> None:
    watched = WatchedJob(job("alone"), TRAINING, None)
    assert ClusterView((watched,), (), 0).images_per_s == pytest.approx(1412.3)
    ended = WatchedJob(replace(watched.job, status="SUCCEEDED"), TRAINING, None)
    assert ClusterView((ended,), (), 0).images_per_s == 0


def test_nothing_running_is_said() -> None:
    lines = rendered(ClusterView((), (machine(0, gpus=0),), 0))
    assert lines[0].startswith("0.0 images/s   0 running, 0 waiting   CPUs 0/0")
    assert "GPUs" not in lines[0]
    assert "no jobs" in lines
    assert row(lines, "10.0.0.0 (head)")


def test_gpu_that_idles_among_busy_ones_is_seen() -> None:
    devices = tuple(Gpu("H100", busy, Use(1024.0 * gib, 81_920.0)) for busy, gib in ((100.0, 70), (0.0, 1), (None, 70)))
    lines = rendered(ClusterView((), (replace(machine(1), devices=devices),), 0))
    assert row(lines, "10.0.0.1")[-3:] == ["█▁", "50%", "1-70/80"]
