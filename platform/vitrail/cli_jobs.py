"""`vitrail submit`, `status`, `logs`, `stop` and `list`: jobs on a cluster, by name."""

import re
import sys
import time
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
from vitrail.words import duration

if TYPE_CHECKING:
    from vitrail.cluster.jobs.jobs import Job, Jobs
    from vitrail.cluster.jobs.request import JobRequest

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
    priority: Annotated[int, typer.Option(help="Of those that wait, the highest is next.")] = 0,
    preemptible: Annotated[
        bool, typer.Option("--preemptible", help="Save and make room for higher priorities, then go on by itself.")
    ] = False,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each worker.", show_default="its GPUs' share, or 1")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run where, what is missing, and hours; send nothing.")
    ] = False,
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
        from vitrail.cluster.jobs.code_package import mebibytes
        from vitrail.cluster.jobs.request import JobRequest
        from vitrail.cluster.jobs.server import machines_behind

        made_up = f"{script.stem}-{datetime.now(UTC):%m%d-%H%M%S}"
        request = JobRequest.parse(
            script,
            own,
            name=name,
            default_name=made_up,
            owner=current_user(),
            priority=priority,
            preemptible=preemptible,
            cpus_per_worker=cpus_per_worker,
        )
        jobs = _jobs(address)
        if dry_run:
            raise SystemExit(_dry_run(jobs, request, read_launcher_file(cluster)))
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
        print(f"{job.name}: {job.status}, {'for' if job.live else 'after'} {duration(job.seconds)}{code}")
        if job.status == "QUEUED":
            print(f"  begins     {_begins(job)}")
        print(f"  priority   {job.priority}{', makes room for higher ones' if job.preemptible else ''}")
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
    """List the jobs of a cluster, the newest first; a `p` at the priority marks those that make room for others."""
    with exit_codes():
        table = Table("job", "status", "begins", "time", "prio", "owner", "code", "command", box=None)
        for job in _jobs(address).all():
            table.add_row(
                job.name,
                job.status,
                _begins(job) if job.status == "QUEUED" else "",
                duration(job.seconds),
                f"{job.priority}{'p' if job.preemptible else ''}",
                job.owner,
                _short(job.revision),
                job.command,
                end_section=True,
            )
        Console().print(table)


def recover(address: Address = None) -> None:
    """After a head was lost: send its waiting and running jobs again, and show those that were over.

    Every start of a cluster of cluster.yaml does it. Jobs are known by what is below the head's VITRAIL_RUNS, and by
    the archive that its VITRAIL_ARCHIVE names.
    """
    with exit_codes():
        print(_jobs(address).recover(), end="")


JOB_COMMANDS: dict[str, Callable[..., Any]] = {
    "submit": submit,
    "status": status,
    "logs": logs,
    "stop": stop,
    "list": list_jobs,
    "recover": recover,
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
    from vitrail.cluster.jobs.jobs import Jobs
    from vitrail.cluster.jobs.server import job_address

    return Jobs(job_address(address))


def _dry_run(jobs: "Jobs", request: "JobRequest", launcher: dict[str, Any]) -> int:
    from vitrail.cluster.preflight.dry_run import look
    from vitrail.cluster.preflight.report import print_dry_run

    found = look(jobs, request, launcher)
    print_dry_run(found)
    return found.preflight.exit_code


def _follow(jobs: "Jobs", job: "Job") -> int:
    try:
        ended = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\n{job.name} goes on; `vitrail stop {job.name}` ends it", file=sys.stderr)
        return 130
    print(f"{job.name}: {ended.status} after {duration(ended.seconds)}", file=sys.stderr)
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
    from vitrail.cluster.jobs.failure import reason_for_failure

    for line in reason_for_failure(jobs.log(job), job.message).splitlines():
        print(f"  error      {line}", file=file)
    print(f"  log        vitrail logs {job.name}; on the head, VITRAIL_RUNS/jobs/*-{job.id}/log.txt; of its", file=file)
    print("             workers, /tmp/ray/session_latest/logs/train on their machines", file=file)


def _begins(job: "Job") -> str:
    """When a job that waits is expected to begin."""
    if job.expected_start is not None:
        wait_s = job.expected_start - time.time()
        return "now" if wait_s < 60 else f"in {duration(wait_s)}"
    return f"after {job.after}" if job.after else "when machines come"


def _short(revision: str) -> str:
    """A revision whose commit has twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", revision)
