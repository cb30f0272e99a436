"""A dry run for a person: what would run where, what it takes, and what is in the way."""

import shutil
import textwrap
from collections.abc import Callable, Iterator

from vitrail.cluster.capacity import described
from vitrail.cluster.jobs.code_package import mebibytes
from vitrail.cluster.preflight.dry_run import DryRun
from vitrail.cluster.preflight.facts import Facts, MachineFacts, RunFacts
from vitrail.cluster.preflight.findings import need_of
from vitrail.cluster.preflight.placement import Placement, Share
from vitrail.config import RunConfig
from vitrail.words import plural

_LABEL = 12
_MOST_MACHINES = 8


def print_dry_run(found: DryRun, *, show: Callable[[str], None] = print) -> None:
    """Print it in two columns."""
    width = max(60, min(120, shutil.get_terminal_size((80, 24)).columns))
    show(f"{found.request.name}: a dry run, nothing is started")
    for label, text in _lines(found):
        for line in textwrap.wrap(
            text,
            width,
            initial_indent=f"  {label:{_LABEL}}",
            subsequent_indent=" " * (_LABEL + 2),
            break_long_words=False,
            break_on_hyphens=False,
        ):
            show(line)


def _lines(found: DryRun) -> Iterator[tuple[str, str]]:
    facts, code = found.facts, found.request.code
    yield "command", found.request.command
    yield "code", f"{plural(len(code.files), 'file')}, {mebibytes(found.code_bytes)} packed"
    yield from _machines(found)
    yield "driver", "on the head"
    if facts.asked is None:
        yield "workers", "not known: only arguments of training runs and sweeps can be read; machines were looked at"
    if facts.run is not None:
        yield from _run(facts.run, found.checkpoint_bytes)
    if facts.asked is not None and found.preflight.placement is not None:
        yield "workers", _workers(facts, found.preflight.placement)
    if facts.run is not None:
        yield "decoding", _decoding(facts.run.config, found)
        yield "recorded", f"in MLflow at {facts.question.tracking_uri}"
    for number, text in enumerate(found.expected):
        yield "" if number else "expected", text
    for finding in found.preflight.findings:
        yield finding.severity, f"{finding.name}: {finding.text}"
        yield "", f"-> {finding.way_out}"
    errors = sum(finding.severity == "error" for finding in found.preflight.findings)
    yield "verdict", f"{plural(errors, 'error')}: it would fail" if errors else "nothing found that would make it fail"


def _machines(found: DryRun) -> Iterator[tuple[str, str]]:
    label = "machines"
    machines = found.facts.machines
    for machine in machines[:_MOST_MACHINES]:
        yield label, f"{machine.name}: {_what(machine)}"
        label = ""
    if len(machines) > _MOST_MACHINES:
        rest = machines[_MOST_MACHINES:]
        yield label, f"and {len(rest)} more, with {described(machine.resources for machine in rest)}"
    for each in found.types:
        alive = sum(machine.type == each.name for machine in machines)
        yield "", f"type {each.name}: {described([each.resources])} each; {alive} of up to {each.max_workers} are there"


def _what(machine: MachineFacts) -> str:
    device = ""
    if machine.answer is not None:
        device = f" ({', '.join(dict.fromkeys(machine.answer.gpus)) or machine.answer.cpu})"
    return described([machine.resources]) + device


def _run(run: RunFacts, checkpoint_bytes: int | None) -> Iterator[tuple[str, str]]:
    config, recipe = run.config, run.config.recipe
    images = " and ".join(f"{count} {split}" for split, count in run.images.items())
    yield "run", f"{config.name}, {recipe.model.num_classes} classes, {images} images"
    begins = f"from step {run.done_steps} on" if run.done_steps else "from the beginning"
    yield "", f"{recipe.total_steps} steps of {recipe.global_batch} images, {begins}"
    if checkpoint_bytes is not None:
        kept = plural(config.keep_newest + config.keep_best, "checkpoint")
        free = f"; {run.free_bytes / 1e9:.1f} GB are free" if run.free_bytes is not None else ""
        yield "keeps", f"{kept} of {checkpoint_bytes / 1e6:,.0f} MB in {config.checkpoints}{free}"


def _workers(facts: Facts, placement: Placement) -> str:
    need = need_of(facts)
    assert need is not None
    each = plural(int(need.cpus), "CPU") + (f" and {need.gpus:g} GPU" if need.gpus else "")
    beside = ""
    if facts.run is not None and facts.run.config.validate_beside:
        beside = ", one of them for validations beside the run"
    where = "; ".join(map(_share, placement.shares)) or "nowhere"
    if facts.sweep is not None:
        return f"{placement.asked} at a time with {each} each: {where}"
    return f"{placement.asked} with {each} each{beside}: {where}"


def _share(share: Share) -> str:
    if share.to_start:
        return f"{share.count} on {plural(share.on, 'machine')} of type {share.machines} that the autoscaler starts"
    return f"{share.count} on {share.machines}"


def _decoding(config: RunConfig, found: DryRun) -> str:
    if config.ingest == "ray-data":
        without = [each.name for each in found.types if not each.resources.get("GPU")]
        where = f", on machines of type {' or '.join(without)}" if without else " on any machine with free CPUs"
        return f"by Ray Data's tasks{where}"
    processes, threads = config.decode_processes, config.decode_threads
    own = f"{processes} processes" if processes > 1 else "a process" if processes else plural(threads, "thread")
    return f"by each worker itself, in {own}"
