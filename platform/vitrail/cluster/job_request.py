"""What somebody asks a cluster to run, and what is refused before anything is sent."""

import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vitrail.cluster.capacity import Machine, described, worker_places
from vitrail.cluster.code_package import CodePackage
from vitrail.cluster.runtime import InfeasibleError
from vitrail.errors import UsageError
from vitrail.secrets import holds_password, secrets_of
from vitrail.tracking.environment import JOB_VARIABLE, OWNER_VARIABLE

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_PLACES = ("data", "root", "checkpoints")
"""Options that name a place, which has to be one for the cluster's machines."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A script of this checkout with its arguments, under a name."""

    name: str
    script: Path
    """Relative to the checkout."""
    arguments: tuple[str, ...]
    code: CodePackage
    owner: str
    workers: int = 1
    """The least that it can run with."""
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"a job cannot be called {self.name!r}; use letters, digits, and . _ - after the first")

    @classmethod
    def parse(
        cls, script: Path, arguments: Sequence[str], *, name: str | None, default_name: str, owner: str
    ) -> "JobRequest":
        """A request from a command line. Scripts with a `main` for typer have their arguments checked by it.

        Raises:
            UsageError: the arguments are wrong, hold a secret, or name a place on this machine alone.
        """
        check_no_secrets(arguments, os.environ)
        code = CodePackage.of(script)
        values = _parsed(script, arguments)
        own_name = values.get("name")
        return cls(
            name=name or (own_name if isinstance(own_name, str) else default_name),
            script=script.resolve().relative_to(code.root),
            arguments=tuple(arguments),
            code=code,
            owner=owner,
            workers=int(values.get("min_workers") or values.get("workers") or 1),
            gpus_per_worker=float(values.get("gpus_per_worker") or 0.0),
        )

    @property
    def command(self) -> str:
        """The command as somebody would type it."""
        return shlex.join([str(self.script), *self.arguments])

    def entrypoint(self) -> str:
        """For the shell on the head. Runs go where the nodes say, never into the unpacked code, which Ray deletes."""
        return f'export VITRAIL_RUNS="${{VITRAIL_RUNS:-$HOME/runs}}"; exec python {self.command}'

    def environment(self, job_id: str) -> dict[str, str]:
        """What the job and its workers find set. Everybody on the cluster can read it, so no credential is in it."""
        return {
            "PYTHONPATH": "platform",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the nodes' environment is made already
            "VITRAIL_REVISION": self.code.revision,
            JOB_VARIABLE: job_id,
            OWNER_VARIABLE: self.owner,
        }

    def check_fits(self, machines: Sequence[Machine]) -> None:
        """Raise `InfeasibleError` unless the machines, those included that may be started, have the workers' places."""
        if worker_places(machines, gpus_per_worker=self.gpus_per_worker) < self.workers:
            asked = f"{self.workers} workers with {self.gpus_per_worker:g} GPUs and a CPU each"
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


def _parsed(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of a script's parameters, by name; nothing for scripts that typer does not read."""
    main = _main_of(script)
    if main is None:
        return {}
    app = typer.Typer(add_completion=False)
    app.command()(main)
    command = typer.main.get_command(app)
    try:
        context = command.make_context(str(script), list(arguments))
    except Exception as error:
        # Of click, or of the copy of click that newer versions of typer bring along.
        if not hasattr(error, "format_message"):
            raise
        raise UsageError(f"{script}: {error.format_message()}; `uv run {script} --help` lists what it takes") from None
    for option in _PLACES:
        _check_place(context, option)
    return dict(context.params)


def _check_place(context: Any, option: str) -> None:
    value = str(context.params.get(option) or "")
    source = context.get_parameter_source(option)
    typed = source is not None and source.name == "COMMANDLINE"
    if typed and value and "://" not in value and not Path(value).is_absolute():
        raise UsageError(
            f"--{option} {value} is a folder beside this checkout, and jobs run on other machines; give s3:// or "
            "gs://, or the whole path of a folder that they all have"
        )


def _main_of(script: Path) -> Any:
    """The script's `main`, if importing it runs nothing else."""
    if not re.search(r'^if __name__ == "__main__":\n    typer\.run\(main\)$', script.read_text(), re.MULTILINE):
        return None
    spec = importlib.util.spec_from_file_location(f"job_{script.stem}", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main
