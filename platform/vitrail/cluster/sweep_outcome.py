"""What a person is told before a sweep and after it, and what is done with the best trial."""

from rich.console import Console
from rich.table import Table

from vitrail.cluster.launch import plan_run
from vitrail.cluster.probe import measure_costs
from vitrail.cluster.sweep_plan import SweepConfig, forecast, known_recipes
from vitrail.cluster.trainer import TrainResult, read_result, register_best, train
from vitrail.config import RunConfig
from vitrail.recipes import get_recipe
from vitrail.sweep.decision import Decision, decide
from vitrail.sweep.record import Cost, SweepRecord
from vitrail.sweep.space import apply
from vitrail.sweep.statistics import ranked_labels, summarise
from vitrail.tracking.registry import Version
from vitrail.tracking.sweep_report import REPORT_FILE

_OF_THE_SWEEP = ("steps",)
"""Choices that a full-length training does not take over: it has a length of its own."""


def announce(config: SweepConfig) -> dict[str, Cost]:
    """Print what the sweep will take, and return the costs that were measured for that, by label."""
    print("measuring for a moment what each model costs", flush=True)
    costs = measure_costs(config.template, known_recipes(config))
    for line in forecast(config, costs).lines():
        print(f"{config.name}  {line}", flush=True)
    return {label: cost for label, cost in costs.items() if label}


def conclude(
    config: SweepConfig, record: SweepRecord, *, register: str | None = None, then_train: str | None = None
) -> Version:
    """Print the configurations and the decision, and register the best trial's checkpoint.

    Args:
        register: the registered model's name; None: the data set's.
        then_train: a recipe to train at full length with the winner's choices, and to register too.

    Returns:
        the version registered last.

    Raises:
        VitrailError: no trial finished.
    """
    decision = decide(record)
    print_configurations(record, decision)
    print(decision.reason)
    print(f"report: {config.folder / REPORT_FILE}", flush=True)
    run = best_run(config, decision)
    version = _registered(run, read_result(run), register)
    if then_train is not None:
        run = full_length(config, decision, then_train)
        version = _registered(run, train(run, resume=True), register)
    return version


def best_run(config: SweepConfig, decision: Decision) -> RunConfig:
    """The run of the trial that was decided for."""
    return config.trial(decision.trial.configuration, decision.trial.seed)


def full_length(config: SweepConfig, decision: Decision, recipe: str) -> RunConfig:
    """The run that trains `recipe` with the winner's choices on as many workers as a trial had."""
    chosen = {name: value for name, value in decision.trial.configuration.items() if name not in _OF_THE_SWEEP}
    template = config.template
    assert template.tracking is not None
    return plan_run(
        apply(get_recipe(recipe), chosen),
        template.data,
        root=config.folder.parent,
        name=f"{config.name}-winner",
        workers=template.workers,
        gpus_per_worker=template.gpus_per_worker,
        compute=template.compute,
        ingest=template.ingest,
        tracking_uri=template.tracking.uri,
        experiment=template.tracking.experiment,
    )


def print_configurations(record: SweepRecord, decision: Decision) -> None:
    """A line per configuration, best first; the winner and what is within noise of it are marked."""
    statistics = summarise(record)
    table = Table("configuration", "mIoU", "95 % interval", "seeds", "img/s", "GiB", "")
    for label in ranked_labels(record, statistics):
        scores, cost = statistics.of(label), record.costs.get(label)
        interval = scores.interval if scores else None
        trials = record.trials_of(label)
        states = sorted({trial.status for trial in trials} - {"finished"})
        note = "best" if label == decision.winner else "within noise" if label in decision.within_noise else ""
        table.add_row(
            label,
            f"{scores.mean:.2%}" if scores else "",
            f"{interval.low:.2%} to {interval.high:.2%}" if interval else "",
            str(scores.n if scores else 0),
            f"{cost.predict_images_per_s:.1f}" if cost else "",
            f"{cost.peak_memory_gib:.2f}" if cost else "",
            ", ".join(filter(None, [note, *states])),
        )
    Console().print(table)


def _registered(run: RunConfig, result: TrainResult, name: str | None) -> Version:
    version = register_best(run, result, name=name)
    print(f"{run.name}: best mIoU {result.best_miou:.2%}, registered as {version.name} version {version.number}")
    return version
