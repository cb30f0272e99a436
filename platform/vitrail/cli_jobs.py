"""`vitrail submit`, `status`, `logs`, `stop` and `list`: jobs on a cluster, by name."""

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vitrail.errors import UsageError, exit_codes
from vitrail.options import tracking_address
from vitrail.tracking.environment import TrackingError, current_user

if TYPE_CHECKING:
    from vitrail.cluster.jobs import Job, Jobs

Name = Annotated[str, typer.Argument(help="The job's name.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard; otherwise RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265, a tunnel's end."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI",
        callback=tracking_address,
        help="Where to look for the job's runs in MLflow.",
    ),
]
_OURS = ("--follow", "--address")
"""Options of `submit` that may also stand among the script's: a job is on its cluster, and needs no address."""


def submit(
    script: Annotated[Path, typer.Argument(help="A script of this checkout, such as jobs/train.py.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The job's name; otherwise the script's --name, or one made up.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its output, and end as it ends.")] = False,
    cluster: Annotated[Path, typer.Option(help="The file that the cluster was made from.")] = Path("cluster.yaml"),
    address: Address = None,
) -> None:
    """Run a script of this checkout on a cluster, with the checkout's code.

    Options of `submit` stand before SCRIPT, the script's after it; --follow and --address may stand anywhere.
    """
    with exit_codes():
        ours, own = _split(arguments or [])
        follow, address = follow or "--follow" in ours, ours.get("--address") or address

        from vitrail.cluster.capacity import read_launcher_file
        from vitrail.cluster.code_package import mebibytes
        from vitrail.cluster.job_request import JobRequest
        from vitrail.cluster.job_server import machines_behind

        made_up = f"{script.stem}-{datetime.now(UTC):%m%d-%H%M%S}"
        request = JobRequest.parse(script, own, name=name, default_name=made_up, owner=current_user())
        jobs = _jobs(address)
        request.check_fits(machines_behind(jobs.address, read_launcher_file(cluster)))
        code = request.code

        def say_size(size_bytes: int) -> None:
            print(f"code: {len(code.files)} files of {_short(code.revision)}, {mebibytes(size_bytes)} packed")
            print(f"  stays here: what .gitignore names, and {', '.join(code.left_out())}", flush=True)

        job = jobs.submit(request, packed=say_size)
        print(f"{job.name}: sent as {job.id}")
        if follow:
            raise SystemExit(_follow(jobs, job))
        for what, command in (("its output", "logs --follow"), ("where it stands", "status"), ("to end it", "stop")):
            print(f"  {what:16} vitrail {command} {job.name}")


def status(name: Name, tracking_uri: TrackingUri = None, address: Address = None) -> None:
    """Say how a job is doing; the exit code is 1 where it failed or was stopped, 2 where its command was wrong."""
    with exit_codes():
        jobs = _jobs(address)
        job = jobs.find(name)
        code = f", exit code {job.exit_status}" if job.exit_status else ""
        print(f"{job.name}: {job.status}, {'for' if job.live else 'after'} {_duration(job.seconds)}{code}")
        print(f"  command    {job.command}")
        print(f"  sent       {job.submitted_at} by {job.owner}, as {job.id}")
        print(f"  code       {job.revision}")
        _print_runs(job, tracking_uri)
        if job.status == "FAILED":
            _print_failure(jobs, job, sys.stdout)
        if not job.live:
            raise SystemExit(job.exit_code)


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends, and end as it ends.")] = False,
    address: Address = None,
) -> None:
    """Print what a job has printed."""
    with exit_codes():
        jobs = _jobs(address)
        job = jobs.find(name)
        if follow:
            raise SystemExit(_follow(jobs, job))
        print(jobs.log(job), end="")


def stop(name: Name, address: Address = None) -> None:
    """End a job: a run saves a checkpoint first, and a job that waits does not begin."""
    with exit_codes():
        jobs = _jobs(address)
        job = jobs.find(name)
        ended = jobs.stop(job)
        print(f"{job.name}: {ended.status}" + ("" if job.live else ", and was before"))


def list_jobs(address: Address = None) -> None:
    """List the jobs that were sent to a cluster since its head was started, the newest first."""
    with exit_codes():
        table = Table("job", "status", "time", "owner", "code", "command", box=None)
        for job in _jobs(address).all():
            table.add_row(
                job.name,
                job.status,
                _duration(job.seconds),
                job.owner,
                _short(job.revision),
                job.command,
                end_section=True,
            )
        Console().print(table)


JOB_COMMANDS: dict[str, Callable[..., Any]] = {
    "submit": submit,
    "status": status,
    "logs": logs,
    "stop": stop,
    "list": list_jobs,
}


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """What of the arguments is ours, by option, and what is the script's."""
    ours: dict[str, str] = {}
    own: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option not in _OURS:
            own.append(argument)
        elif option == "--follow":
            ours[option] = ""
        else:
            ours[option] = value if equals else next(rest, "")
            if not ours[option]:
                raise UsageError(f"{option} needs a value")
    return ours, own


def _jobs(address: str | None) -> "Jobs":
    from vitrail.cluster.job_server import job_address
    from vitrail.cluster.jobs import Jobs

    return Jobs(job_address(address))


def _follow(jobs: "Jobs", job: "Job") -> int:
    try:
        ended = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\n{job.name} goes on; `vitrail stop {job.name}` ends it", file=sys.stderr)
        return 130
    print(f"{job.name}: {ended.status} after {_duration(ended.seconds)}", file=sys.stderr)
    if ended.status == "FAILED":
        _print_failure(jobs, ended, sys.stderr)
    return ended.exit_code


def _print_runs(job: "Job", tracking_uri: str | None) -> None:
    from vitrail.tracking.environment import JOB_TAG
    from vitrail.tracking.job_runs import runs_of_job

    if tracking_uri is None:
        print(f"  in MLflow  runs with tags.`{JOB_TAG}` = '{job.id}'; MLFLOW_TRACKING_URI or --tracking-uri finds them")
        return
    try:
        runs = runs_of_job(tracking_uri, job.id)
    except TrackingError as error:
        print(f"  in MLflow  {error}")
        return
    for run in runs[:3]:
        print(f"  in MLflow  {run.name}, {run.status}: {run.url or run.run_id}")
    if not runs or len(runs) > 3:
        print(f"  in MLflow  {'no run yet' if not runs else f'and {len(runs) - 3} more'}")


def _print_failure(jobs: "Jobs", job: "Job", file: Any) -> None:
    from vitrail.cluster.job_failure import reason_for_failure

    for line in reason_for_failure(jobs.log(job), job.message).splitlines():
        print(f"  error      {line}", file=file)
    print(f"  log        vitrail logs {job.name}; on the head, in /tmp/ray/session_latest/logs:", file=file)
    print(f"             job-driver-{job.id}.log, and train/ on each machine for its workers", file=file)


def _short(revision: str) -> str:
    """A revision whose commit has twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", revision)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
