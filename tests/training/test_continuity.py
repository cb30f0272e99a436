"""What restarts cost a run."""

from pathlib import Path

from vitrail.training.continuity import CONTINUITY, Continuity, RestartClock


def test_time_is_lost_until_the_step_reached_before_is_reached_again(tmp_path: Path) -> None:
    clock = RestartClock(tmp_path)
    clock.reached(10)
    clock.reached(20)
    assert (clock.kept.restarts, clock.kept.lost_s) == (0, 0.0)

    stopped = Continuity.load(tmp_path)
    Continuity(step=20, at_s=stopped.at_s - 60).save(tmp_path)  # heard of a minute ago
    clock = RestartClock(tmp_path)
    clock.reached(15)
    assert clock.kept.lost_s == 0.0
    clock.reached(25)
    assert clock.kept.restarts == 1
    assert 60 <= clock.kept.lost_s < 120
    clock.reached(30)
    assert Continuity.load(tmp_path) == clock.kept


def test_damaged_file_is_a_new_start(tmp_path: Path) -> None:
    (tmp_path / CONTINUITY).write_text('{"step": 3')
    assert Continuity.load(tmp_path) == Continuity()
