"""The live table of a sweep."""

from pathlib import Path

import pytest
from rich.console import Console
from test_sweep_plan import config

from vitrail.cluster.progress import TrainRates, TrainStatus
from vitrail.cluster.sweep_plan import new_record
from vitrail.cluster.sweep_progress import trial_table
from vitrail.sweep.record import Score


def test_table_shows_each_trial_with_step_score_state_and_time_left(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = config(tmp_path, tiny_data)
    ready, running, over, failed = (
        plan.waiting(chosen, 0).model_copy(update={"status": status})
        for chosen, status in zip(
            plan.space.configurations(), ("waiting", "running", "finished", "failed"), strict=False
        )
    )
    over = over.scored(Score(step=1000, miou=0.25))
    failed = failed.model_copy(update={"error": "a loss is NaN\nand more"})
    record = new_record(plan)
    for trial in (ready, running, over, failed):
        record = record.with_trial(trial)
    rates = TrainRates(loss=1.0, lr=1e-3, images_per_s=5.0, data_wait_share=0.0, seconds_left=3725)
    statuses = {running.name: TrainStatus("training", 320, 1000, rates=rates, miou=0.1)}
    Console(width=160).print(trial_table(record, statuses))
    lines = capsys.readouterr().out.splitlines()
    assert "sweep: 2 of 4 over" in lines[0]
    cells = [line.split() for line in lines if "seed0" in line]
    assert [row[1] for row in cells] == [over.name, running.name, ready.name, failed.name]  # best first
    text = {row[1]: " ".join(row) for row in cells}
    assert "1000/1000" in text[over.name]
    assert "25.00%" in text[over.name]
    assert "320/1000" in text[running.name]
    assert "training" in text[running.name]
    assert "01:02:05" in text[running.name]
    assert "failed: a loss is NaN" in text[failed.name]
    assert "and more" not in text[failed.name]
