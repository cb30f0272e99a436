"""What somebody asks a cluster to run, and what is refused before anything is sent."""

import importlib.util
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from vitrail.cluster.capacity import Machine, described
from vitrail.cluster.jobs.code_package import CodePackage
from vitrail.cluster.queue.policy import Demand, fits
from vitrail.cluster.queue.record import RECORD_VARIABLE
from vitrail.cluster.runtime import InfeasibleError
from vitrail.errors import UsageError
from vitrail.secrets import holds_password, secrets_of
from vitrail.tracking.environment import JOB_VARIABLE, OWNER_VARIABLE

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
EXPORT_RUNS = 'export VITRAIL_RUNS="${VITRAIL_RUNS:-$HOME/runs}"'
"""For the shell on the head."""
_PLACES = ("data", "root", "checkpoints", "src", "dst", "place", "images", "out")
"""Parameters that name a place, which has to be one for the cluster's machines."""
_NAMES_OR_PLACES = ("model", "pretrained")
"""The same, where they do not name something else."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A script of this checkout with its arguments, under a name."""

    name: str
    script: Path
    """Relative to the checkout."""
    arguments: tuple[str, ...]
    code: CodePackage
    owner: str
    demand: Demand = field(default_factory=Demand)
    priority: int = 0
    preemptible: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"a job cannot be called {self.name!r}; use letters, digits, and . _ - after the first")

    @classmethod
    def parse(
        cls,
        script: Path,
        arguments: Sequence[str],
        *,
        name: str | None,
        default_name: str,
        owner: str,
        priority: int = 0,
        preemptible: bool = False,
        cpus_per_worker: int | None = None,
    ) -> "JobRequest":
        """A request from a command line. Scripts with a `main` for typer have their arguments checked by it.

        Raises:
            UsageError: the arguments are wrong, hold a secret, or name a place on this machine alone.
        """
        check_no_secrets(arguments, os.environ)
        code = CodePackage.of(script)
        values = parsed_arguments(script, arguments)
        own_name = values.get("name")
        return cls(
            name=name or (own_name if isinstance(own_name, str) else default_name),
            script=script.resolve().relative_to(code.root),
            arguments=tuple(arguments),
            code=code,
            owner=owner,
            demand=_demand(values, cpus_per_worker=cpus_per_worker),
            priority=priority,
            preemptible=preemptible,
        )

    @property
    def command(self) -> str:
        """The command as somebody would type it."""
        return shlex.join([str(self.script), *self.arguments])

    def entrypoint(self) -> str:
        """For the shell on the head. Runs go where the nodes say, never into the unpacked code, which Ray deletes."""
        return f"{EXPORT_RUNS}; exec python -m vitrail.cluster.queue.entry {self.command}"

    def notes(self) -> dict[str, str]:
        """What is noted of the job where everybody on the cluster can read it."""
        return {
            "vitrail.name": self.name,
            "vitrail.owner": self.owner,
            "vitrail.command": self.command,
            "vitrail.revision": self.code.revision,
            "vitrail.submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "vitrail.priority": str(self.priority),
            "vitrail.preemptible": "yes" if self.preemptible else "no",
            "vitrail.demand": json.dumps(asdict(self.demand)),
        }

    def environment(self, job_id: str) -> dict[str, str]:
        """What the job and its workers find set. Everybody on the cluster can read it, so no credential is in it."""
        return {
            "PYTHONPATH": "platform",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the nodes' environment is made already
            "VITRAIL_REVISION": self.code.revision,
            JOB_VARIABLE: job_id,
            RECORD_VARIABLE: f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{job_id}",
            OWNER_VARIABLE: self.owner,
        }

    def check_fits(self, machines: Sequence[Machine]) -> None:
        """Raise `InfeasibleError` unless the machines, those included that may be started, have the workers' places."""
        if not fits(self.demand, machines):
            cpus = {None: "a CPU", 1: "a CPU"}.get(self.demand.cpus_per_worker, f"{self.demand.cpus_per_worker} CPUs")
            workers = self.demand.min_workers or self.demand.workers
            asked = f"{workers} workers with {self.demand.gpus_per_worker:g} GPUs and {cpus} each"
            raise InfeasibleError(asked, described(machines))


def check_no_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse arguments that hold what a variable for secrets holds, or an address with a password.

    Raises:
        UsageError: says which, and never repeats it.
    """
    secrets = secrets_of(environment)
    for number, argument in enumerate(arguments, start=1):
        found = [name for name, value in secrets.items() if value in argument]
        if found or holds_password(argument):
            what = f"what {found[0]} holds" if found else "an address with a password"
            raise UsageError(
                f"argument {number} of the script holds {what}, and everybody on the cluster can read a job's "
                "arguments; the cluster's machines carry credentials, see `On a cluster` in README.md"
            )


def _demand(values: Mapping[str, Any], *, cpus_per_worker: int | None) -> Demand:
    """What a script with these parameters needs; one that names none of them, a worker."""
    workers, trials = int(values.get("workers") or 1), values.get("concurrent")
    return Demand(
        workers=workers * int(trials or 1) + bool(values.get("validate_beside")),
        min_workers=values.get("min_workers"),
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=float(values.get("gpus_per_worker") or 0.0),
        whole_cluster="concurrent" in values and trials is None,
    )


def parsed_arguments(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of a script's parameters, by name; nothing for scripts that typer does not read."""
    command = command_of(script)
    if command is None:
        return {}
    try:
        context = command.make_context(str(script), list(arguments))
    except Exception as error:
        # Of click, or of the copy of click that newer versions of typer bring along.
        if not hasattr(error, "format_message"):
            raise
        raise UsageError(f"{script}: {error.format_message()}; `uv run {script} --help` lists what it takes") from None
    for parameter in command.params:
        _check_place(context, parameter)
    return dict(context.params)


def _check_place(context: Any, parameter: Any) -> None:
    """Refuse what lies beside this checkout, or would lie in the job's copy of it, which Ray deletes."""
    value, source = context.params.get(parameter.name), context.get_parameter_source(parameter.name)
    if not value or source is None or source.name != "COMMANDLINE" or not isinstance(value, str | Path):
        return
    here = "://" not in str(value) and not Path(value).is_absolute()
    named = parameter.name in _PLACES or (parameter.name in _NAMES_OR_PLACES and Path(value).exists())
    if here and named:
        label = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
        raise UsageError(
            f"{label} {value} is a path of this machine, and jobs run on others; give s3:// or gs://, or the whole "
            "path of a folder that they all have"
        )


def command_of(script: Path) -> Any:
    """What typer makes of the script's `main`, if importing it runs nothing else; else None."""
    if not re.search(r'^if __name__ == "__main__":\n    typer\.run\(main\)$', script.read_text(), re.MULTILINE):
        return None
    spec = importlib.util.spec_from_file_location(f"job_{script.stem}", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    return typer.main.get_command(app)
