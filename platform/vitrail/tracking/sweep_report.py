"""What a sweep's own run shows in MLflow: the report, its pictures, the table of trials, and the decision."""

from collections import Counter

from vitrail.drawing import as_png
from vitrail.sweep.decision import decide
from vitrail.sweep.effects import draw_dimensions
from vitrail.sweep.pictures import draw_costs, draw_curves
from vitrail.sweep.record import SweepRecord
from vitrail.tracking.tracker import MlflowTracker

REPORT_FILE = "report.html"


def log_sweep(parent: MlflowTracker, record: SweepRecord, page: bytes) -> None:
    """Log a sweep, over or still running; `page` is its report as HTML. What was logged before is replaced."""
    parent.log_file_content(page, REPORT_FILE)
    for name, draw in (("curves", draw_curves), ("costs", draw_costs), ("dimensions", draw_dimensions)):
        figure = draw(record)
        if figure is not None:
            parent.log_file_content(as_png(figure), f"pictures/{name}.png")
    trials = record.trials
    parent.log_table(
        {
            "trial": [trial.name for trial in trials],
            **{name: [trial.configuration.get(name) for trial in trials] for name in record.dimensions},
            "seed": [trial.seed for trial in trials],
            "status": [trial.status for trial in trials],
            "mIoU": [trial.best.miou if trial.best else None for trial in trials],
            "step": [trial.step for trial in trials],
            "minutes": [round(trial.seconds / 60, 1) for trial in trials],
            "error": [trial.error for trial in trials],
        },
        "tables/trials.json",
    )
    parent.log_metrics({f"trials/{status}": n for status, n in Counter(t.status for t in trials).items()}, step=0)
    if any(trial.status == "finished" for trial in trials):
        decision = decide(record)
        best = decision.trial.best
        assert best is not None
        parent.log_metrics({"best/val_mIoU": best.miou}, step=0)
        parent.set_tags({"vitrail.best_trial": decision.trial.name, "mlflow.note.content": decision.reason})
