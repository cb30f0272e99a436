"""What would make a job fail, or surprise its owner, as findings: decided from the facts of a probe alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vitrail.cluster.capacity import described
from vitrail.cluster.preflight.facts import Answer, Facts, MachineFacts, RunFacts
from vitrail.cluster.preflight.placement import Need, NodeType, Placement, place

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that a person should know before a job is sent."""

    name: str
    """Stable, for scripts."""
    severity: Severity
    """error: the job would fail; warning: it may, or wait; note: what could not be looked at."""
    text: str
    way_out: str


@dataclass(frozen=True)
class Preflight:
    """Where the workers would be, and all findings, errors first."""

    placement: Placement | None
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where the job would fail, else 0."""
        return 2 if any(finding.severity == "error" for finding in self.findings) else 0


def judge(
    facts: Facts, *, types: Sequence[NodeType] = (), checkpoint_bytes: int | None, versions: Mapping[str, str]
) -> Preflight:
    """All findings.

    Args:
        types: what may be started, where the head does not say it itself.
        checkpoint_bytes: of one checkpoint of the run; None where there is none.
        versions: of this checkout's own packages.
    """
    types = facts.types or types
    placement = place_workers(facts, types)
    findings = [
        *_places(facts, types, placement),
        *_data(facts),
        *_plan(facts),
        *_tracking(facts),
        *_checkpoints(facts, checkpoint_bytes),
        *_weights(facts),
        *_versions(facts, versions),
        *_silent(facts, placement),
    ]
    order = ("error", "warning", "note")
    return Preflight(placement, tuple(sorted(findings, key=lambda finding: order.index(finding.severity))))


def need_of(facts: Facts) -> Need | None:
    """What is to be placed: workers, and beside them validations that are to have a place of their own."""
    if facts.run is not None:
        config = facts.run.config
        count = config.workers + config.validate_beside
        return Need(count, config.cpus_per_worker, config.gpus_per_worker)
    if facts.sweep is not None:
        trial, at_once = facts.sweep.config["template"], facts.sweep.at_once
        return Need(at_once * trial["workers"], trial["cpus_per_worker"], trial["gpus_per_worker"])
    return Need(facts.asked.workers, 1, facts.asked.gpus_per_worker) if facts.asked else None


def place_workers(facts: Facts, types: Sequence[NodeType]) -> Placement | None:
    """Where the workers go; None for a script whose workers are not known."""
    need = need_of(facts)
    if need is None:
        return None
    alive = {machine.name: machine.resources for machine in facts.machines}
    names = [machine.type for machine in facts.machines if machine.type]
    return place(need, alive, types, {name: names.count(name) for name in names})


def holding(facts: Facts) -> list[MachineFacts]:
    """The machines that are alive and could hold workers."""
    need = need_of(facts)
    return [machine for machine in facts.machines if need is not None and need.fits_on(machine.resources)]


def _places(facts: Facts, types: Sequence[NodeType], placement: Placement | None) -> Iterator[Finding]:
    need = need_of(facts)
    if need is None or placement is None or facts.asked is None or placement.placed == placement.asked:
        if need is not None:
            yield from _busy(facts, need, placement)
        return
    one = f"{need.cpus:g} CPU{'s' if need.cpus != 1 else ''}" + (f" and {need.gpus:g} GPUs" if need.gpus else "")
    machines = [machine.resources for machine in facts.machines] + [
        each.resources for each in types for _ in range(each.max_workers)
    ]
    if placement.placed == 0:
        kinds = sorted({described([machine]) for machine in machines})
        text = f"no machine can ever hold a worker of {one}; the largest have {_listed(kinds[-3:])}"
        yield Finding(
            "no-place", "error", text, "ask for less with --gpus-per-worker, or add a node type to the cluster"
        )
        return
    text = f"{placement.placed} of {placement.asked} places for {one} each can be had at once"
    least = facts.asked.least + int(facts.run is not None and facts.run.config.validate_beside)
    if placement.placed < least:
        way_out = f"ask for {placement.placed} workers, begin with fewer by --min-workers, or let the cluster grow"
        yield Finding("too-few-places", "error", text, way_out)
    else:
        text += f"; it begins with at least {least}, and takes more when there are more"
        yield Finding("fewer-places", "warning", text, "let the cluster grow, or ask for fewer workers")


def _busy(facts: Facts, need: Need, placement: Placement | None) -> Iterator[Finding]:
    """Not for machines that are yet to be started, which nobody uses."""
    here = sum(share.count for share in placement.shares if not share.to_start) if placement else 0
    for unit, each in (("GPU", need.gpus), ("CPU", need.cpus)):
        wanted, free = here * each, facts.available.get(unit, 0.0)
        if wanted > free + 1e-6:
            text = f"{free:g} {unit}s of the machines that are there are free now, and {wanted:g} are wanted of them"
            yield Finding("busy", "warning", text, "nothing need be done: it waits for other jobs to end")
            return


def _data(facts: Facts) -> Iterator[Finding]:
    for text, where in _by_text(facts, lambda answer: answer.data_error).items():
        way_out = "give s3:// or gs:// with credentials on the machines, or a folder that all of them have"
        yield Finding("data-unreachable", "error", f"{where}: {text}", way_out)
    found = _by_text(facts, lambda answer: answer.data_fingerprint)
    if len(found) > 1:
        text = "the data set is not the same everywhere: " + "; ".join(
            f"{where}: {each}" for each, where in found.items()
        )
        yield Finding("data-differs", "error", text, "copy it again, or keep it where all machines read the same")


def _plan(facts: Facts) -> Iterator[Finding]:
    head_lacks_data = any(machine.head and machine.answer and machine.answer.data_error for machine in facts.machines)
    if facts.refusal is not None and not head_lacks_data:
        yield Finding("refused", "error", facts.refusal, "change the command; nothing of the cluster is at fault")
    planned = facts.run or facts.sweep
    if planned is not None and planned.name_error is not None:
        way_out = "choose another --name, or continue the run that is there with --resume"
        yield Finding("name-taken", "error", planned.name_error, way_out)


def _tracking(facts: Facts) -> Iterator[Finding]:
    def unreachable(answer: Answer) -> str | None:
        return None if answer.tracking_refused else answer.tracking_error

    def refused(answer: Answer) -> str | None:
        return answer.tracking_error if answer.tracking_refused else None

    at = f"MLflow at {facts.question.tracking_uri}"
    for text, where in _by_text(facts, unreachable).items():
        way_out = "start it, or name another by MLFLOW_TRACKING_URI of the nodes or --tracking-uri"
        yield Finding("mlflow-unreachable", "error", f"{where}: {at}: {text}", way_out)
    for text, where in _by_text(facts, refused).items():
        way_out = "put ~/.mlflow/credentials on the machines right; jobs carry none"
        yield Finding("mlflow-refused", "error", f"{where}: {at}: {text}", way_out)


def _checkpoints(facts: Facts, checkpoint_bytes: int | None) -> Iterator[Finding]:
    for text, where in _by_text(facts, lambda answer: answer.checkpoints_error).items():
        text = f"{where}: nothing can be written to {facts.question.checkpoints}: {text}"
        yield Finding(
            "checkpoints-unwritable", "error", text, "choose a place that machines may write to by --checkpoints"
        )
    for folder, where in _by_folder(facts).items():
        if folder == facts.question.checkpoints:
            way_out = "give --checkpoints s3://, gs:// or a folder that all machines share, or set VITRAIL_RUNS to one"
            text = f"checkpoints go to {folder}, and {where} does not share that folder with the head"
            yield Finding("checkpoints-not-shared", "error", text, way_out)
        else:
            text = f"runs are recorded in a file in {folder}, and {where} does not share that folder with the head"
            yield Finding(
                "mlflow-not-shared", "error", text, "set MLFLOW_TRACKING_URI of the nodes to a server's address"
            )
    if facts.run is not None and checkpoint_bytes is not None:
        yield from _space(facts, facts.run, checkpoint_bytes)


def _space(facts: Facts, run: RunFacts, checkpoint_bytes: int) -> Iterator[Finding]:
    """Of the checkpoints that are kept and the one being written; in a store, of the disk that it passes over."""
    way_out = "free some, choose another place by --checkpoints, or name a larger disk in VITRAIL_CACHE"
    if run.free_bytes is not None:
        most = run.config.keep_newest + run.config.keep_best + 1
        needed = max(0, most - run.kept) * checkpoint_bytes
        if run.free_bytes < needed:
            text = (
                f"{run.config.checkpoints} has {_gigabytes(run.free_bytes)} free, and {most} checkpoints of "
                f"{_gigabytes(checkpoint_bytes)} take {_gigabytes(most * checkpoint_bytes)}"
            )
            yield Finding("no-space", "error", text, way_out)
    stored = run.free_bytes is None
    needed = (checkpoint_bytes if stored else 0) + (run.data_bytes if "://" in run.config.data else 0)
    for machine in facts.machines:
        answer = machine.answer
        if needed and answer is not None and answer.cache_free_bytes < needed and machine in holding(facts):
            text = (
                f"{machine.name}: {answer.cache} has {_gigabytes(answer.cache_free_bytes)} free, and a copy of what is "
                f"in the object store takes {_gigabytes(needed)}"
            )
            yield Finding("no-space", "error", text, way_out)


def _weights(facts: Facts) -> Iterator[Finding]:
    if facts.run is not None and facts.run.done_steps:
        return  # a run that goes on starts from its own
    for text, where in _by_text(facts, lambda answer: answer.weights_error).items():
        way_out = "give a file that all machines have, or fill their hub cache; --pretrained none does without"
        yield Finding("weights-unreachable", "error", f"{where}: {text}", way_out)


def _versions(facts: Facts, versions: Mapping[str, str]) -> Iterator[Finding]:
    def differences(answer: Answer) -> str | None:
        found = [
            f"{name} {answer.versions.get(name, 'missing')} ({here} here)"
            for name, here in versions.items()
            if answer.versions.get(name) != here
        ]
        return ", ".join(found) or None

    for text, where in _by_text(facts, differences).items():
        way_out = "`ray up` makes the nodes' environments from pyproject.toml; run it again where it has changed"
        yield Finding("versions-differ", "warning", f"{where}: {text}", way_out)


def _silent(facts: Facts, placement: Placement | None) -> Iterator[Finding]:
    silent = [machine.name for machine in facts.machines if machine.answer is None and machine.asked]
    if silent:
        text = f"{_listed(silent)} did not answer in time, so it is not known what they reach"
        yield Finding("silent", "warning", text, "try again when they are less busy, or look at them with `ray status`")
    unasked = sum(not machine.asked for machine in facts.machines)
    if unasked:
        yield Finding(
            "unasked", "note", f"{unasked} machines are too many to be asked too", "others of their kind were"
        )
    if placement is not None and facts.asked is not None:
        later = [share.machines for share in placement.shares if share.to_start]
        if later:
            text = f"machines of type {_listed(later)} are yet to be started, and what they reach cannot be asked"
            yield Finding("unasked", "note", text, "those that are there were asked; all are made from the same file")


def _by_text(facts: Facts, what: Callable[[Answer], str | None]) -> dict[str, str]:
    """Which machines, in words, say each of the things that are said."""
    said: dict[str, list[str]] = {}
    asked = [(machine.name, machine.answer) for machine in _concerned(facts) if machine.answer is not None]
    for name, answer in asked:
        text = what(answer)
        if text is not None:
            said.setdefault(text, []).append(name)
    return {text: _machines(names, len(asked)) for text, names in said.items()}


def _concerned(facts: Facts) -> list[MachineFacts]:
    """The driver's machine, those that could hold workers, and those that decode images for them."""
    concerned = [machine.name for machine in holding(facts)]
    decoding = facts.run is not None and facts.run.config.ingest == "ray-data"
    return [
        machine
        for machine in facts.machines
        if machine.head or machine.name in concerned or (decoding and machine.resources.get("CPU", 0) >= 1)
    ]


def _by_folder(facts: Facts) -> dict[str, str]:
    """Which machines, in words, lack each of the folders that should be shared."""

    def lacks(folder: str) -> Callable[[Answer], str | None]:
        return lambda answer: folder if folder in answer.unshared else None

    return {folder: where for folder in facts.question.marks for where in _by_text(facts, lacks(folder)).values()}


def _machines(names: Sequence[str], of: int) -> str:
    if len(names) == of > 1:
        return "every machine"
    return _listed(names) if len(names) <= 3 else f"{_listed(names[:2])} and {len(names) - 2} more"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
