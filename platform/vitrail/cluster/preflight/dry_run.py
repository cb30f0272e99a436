"""`vitrail submit --dry-run`: what a job would do on its cluster, what is missing, and what it would cost.

Nothing is sent but a probe, a small job that `vitrail list` does not show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.cluster.asked import SweepAsked, TrainingAsked, asked_by
from vitrail.cluster.jobs.jobs import Jobs, NameInUseError
from vitrail.cluster.jobs.request import JobRequest, parsed_arguments
from vitrail.cluster.preflight.facts import Answer, Facts, Question, RunFacts, SweepFacts
from vitrail.cluster.preflight.findings import Finding, Preflight, holding, judge
from vitrail.cluster.preflight.machine import needed_packages, package_versions
from vitrail.cluster.preflight.placement import NodeType, node_types
from vitrail.cluster.preflight.probe_job import Probe
from vitrail.config import RunConfig
from vitrail.errors import UnknownNameError
from vitrail.words import duration


@dataclass(frozen=True)
class DryRun:
    """All that is known of a job before it is sent."""

    request: JobRequest
    code_bytes: int
    facts: Facts
    types: tuple[NodeType, ...]
    """What may be started."""
    preflight: Preflight
    expected: tuple[str, ...]
    """What it takes, in words; empty where the plan is refused or not known."""
    checkpoint_bytes: int | None


def look(jobs: Jobs, request: JobRequest, launcher: Mapping[str, Any]) -> DryRun:
    """Look at a cluster for a job; `launcher` is the file that it may have been made from.

    Raises:
        ProbeError: the cluster could not be looked at.
        UsageError: the command is wrong.
    """
    asked = asked_by(parsed_arguments(request.code.root / request.script, request.arguments))
    in_use = _name_in_use(jobs, request)
    packages = needed_packages()
    with Probe(jobs.address, request, Question(repository=_repository(asked), packages=packages)) as probe:
        if asked is not None:
            import torch  # noqa: F401 - takes seconds, in which the probe runs
        facts = probe.facts()
    mine = launcher.get("cluster_name") is not None and launcher.get("cluster_name") == facts.cluster
    types = facts.types or (tuple(node_types(launcher)) if mine else ())
    size = _checkpoint_bytes(facts.run)
    preflight = judge(facts, types=types, checkpoint_bytes=size, versions=package_versions(packages))
    return DryRun(
        request=request,
        code_bytes=probe.code_bytes,
        facts=facts,
        types=types,
        preflight=Preflight(preflight.placement, (*in_use, *preflight.findings)),
        expected=_expected(facts, request.code.root / "jobs/results"),
        checkpoint_bytes=size,
    )


def _name_in_use(jobs: Jobs, request: JobRequest) -> tuple[Finding, ...]:
    for job in jobs.all():
        if job.name == request.name and job.live:
            way_out = f"choose another --name, or end it with `vitrail stop {job.name}`"
            text = str(NameInUseError(job.name, job.owner)).partition(";")[0]
            return (Finding("job-name-in-use", "error", text, way_out),)
    return ()


def _repository(asked: TrainingAsked | SweepAsked | None) -> str | None:
    """The hub's, of the weights that are asked for by a name; None for a file, and where there are none."""
    name = asked.base.pretrained if asked is not None and asked.base is not None else None
    if name is None or "/" in name or Path(name).exists():
        return None
    from vitrail.models.hub import repository_of  # late: imports torch

    try:
        return repository_of(name)
    except UnknownNameError:  # then it has to be a file, of the machines there
        return None


def _checkpoint_bytes(run: RunFacts | None) -> int | None:
    if run is None:
        return None
    from vitrail.cluster.sweep_plan import checkpoint_bytes
    from vitrail.models.segmentor import count_parameters

    return checkpoint_bytes(count_parameters(run.config.recipe.model))


def _expected(facts: Facts, records: Path) -> tuple[str, ...]:
    # Of those that are yet to be started it is not known what they have.
    on = tuple(machine.answer for machine in holding(facts) if machine.answer is not None)
    if facts.run is not None:
        return _run_expected(facts.run, records, on)
    if facts.sweep is not None:
        return _sweep_expected(facts.sweep, records, on)
    return ()


def _run_expected(run: RunFacts, records: Path, on: tuple[Answer, ...]) -> tuple[str, ...]:
    from vitrail.cluster.preflight.expected_time import expect
    from vitrail.models.segmentor import count_parameters

    config = run.config
    found = expect(
        config,
        config.recipe,
        parameters=count_parameters(config.recipe.model),
        val_images=run.images["validation"],
        done_steps=run.done_steps,
        earlier=run.earlier,
        records=records,
        workers_on=on,
    )
    if found is None:
        return (
            f"not known: no run of this model ended on this cluster yet, and jobs/results has no benchmark of it "
            f"for {_devices(config, on)}; the same command with --steps 200 and another --name leaves a figure",
        )
    gpus = config.workers * config.gpus_per_worker
    cost = f", {found.seconds / 3600 * gpus:.1f} GPU-hours" if gpus else ""
    return (
        f"{duration(found.seconds)}{cost}, at {found.images_per_s:.3g} images/s",
        f"by {found.source}",
        "with start and validations; without waiting for machines, and restarts",
    )


def _sweep_expected(sweep: SweepFacts, records: Path, on: tuple[Answer, ...]) -> tuple[str, ...]:
    from vitrail.cluster.preflight.expected_time import expect
    from vitrail.cluster.sweep_plan import SweepConfig, forecast_from, known_recipes
    from vitrail.models.segmentor import count_parameters

    config = SweepConfig.model_validate(sweep.config)
    recipes = known_recipes(config)
    parameters = {label: count_parameters(recipe.model) for label, recipe in recipes.items()}
    found = {
        label: expect(
            config.template,
            recipe,
            parameters=parameters[label],
            val_images=sweep.images["validation"],
            done_steps=0,
            earlier=sweep.earlier.get(label, ()),
            records=records,
            workers_on=on,
        )
        for label, recipe in recipes.items()
    }
    known = {label: each for label, each in found.items() if each is not None}
    seconds = {label: known[label].seconds if label in known else 0.0 for label in recipes}
    trials, hours, disk = forecast_from(config, seconds, parameters).lines()
    if len(known) < len(recipes):
        missing = next(label for label in recipes if label not in known) or "what Optuna tries"
        hours = (
            f"hours not known: nothing says how fast {missing!r} is here; the script's own --dry-run, sent as a job, "
            "measures each model for a moment"
        )
        return trials, hours, disk
    sources = "; ".join(dict.fromkeys(f"by {each.source}" for each in known.values()))
    return trials, hours, sources, "with starts and validations; without waiting for machines, and restarts", disk


def _devices(config: RunConfig, on: tuple[Answer, ...]) -> str:
    from vitrail.cluster.preflight.expected_time import devices

    return devices(on) if on else "machines that are yet to be started"
