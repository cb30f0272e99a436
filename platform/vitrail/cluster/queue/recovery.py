"""After a head was lost, its jobs on the next one: those that were over as history, those that were not once more.

    python -m vitrail.cluster.queue.recovery

What `vitrail recover` has Ray run on the head. Knows the jobs by their records below `VITRAIL_RUNS`, and by those of
the archive. A job is sent again as it was, with the code that it had brought along and its place in the queue.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from vitrail.cluster.jobs.server import token_header
from vitrail.cluster.queue.archive import JobArchive
from vitrail.cluster.queue.record import CODE, FAILED, LOG, DamagedRecordError, JobFolder, JobFolders, JobRecord
from vitrail.cluster.queue.table import JobTable
from vitrail.errors import exit_codes

MOST_HISTORY = 500
"""Jobs that are over and shown; the newest."""


def recover(folders: JobFolders, table: JobTable, archive: JobArchive | None) -> Iterator[str]:
    """Bring back what Ray does not know of, and say so job by job."""
    if archive is not None and (count := archive.fetch_missing(folders)):
        yield f"{count} jobs fetched from the archive"
    over: list[tuple[JobFolder, JobRecord]] = []
    client = JobSubmissionClient(table.dashboard(), headers=token_header())
    for folder in folders.all():
        try:
            record = folder.load()
        except DamagedRecordError as error:
            yield str(error)
            continue
        if not record.live:
            over.append((folder, record))
        elif not folder.alive:
            yield _send_again(folders, folder, record, table, client)
    entered = sum(_enter(folder, record, table) for folder, record in reversed(over[-MOST_HISTORY:]))
    yield f"{entered} jobs that are over are shown again"


def _send_again(
    folders: JobFolders, folder: JobFolder, record: JobRecord, table: JobTable, client: JobSubmissionClient
) -> str:
    """Send a job whose process is gone, unless Ray knows how that came."""
    name = record.notes["vitrail.name"]
    taken = {job.submission_id for job in client.list_jobs() if (job.metadata or {}).get("vitrail.name") == name}
    if taken:
        known = table.info(record.id)
        state = known.status.value if known is not None and known.status.is_terminal() else FAILED
        folders.change(folder, lambda lost: replace(lost, state=state, ended_at=time.time()))
        return f"{record.id} is not sent again: " + (
            f"it is {state} on this head" if record.id in taken else f"{min(taken)} was sent since"
        )
    client.submit_job(
        entrypoint=record.entrypoint,
        submission_id=record.id,
        runtime_env={"working_dir": str(folder.path / CODE), "env_vars": record.environment},
        metadata=record.notes,
    )
    return f"{record.id} is sent again, and {'goes on' if record.starts else 'waits'}"


def _enter(folder: JobFolder, record: JobRecord, table: JobTable) -> bool:
    """Have Ray show a job that is over; one of the same id, which is newer, stands in its place."""
    if table.info(record.id) is not None:
        return False
    log = folder.path / LOG
    ended_at = record.ended_at or record.queued_at
    table.add_ended(
        record.id,
        status=record.state,
        entrypoint=record.entrypoint,
        notes=record.notes,
        times=(record.queued_at, ended_at),
        log=log.read_text(errors="replace") if log.is_file() else "",
        exit_status=record.exit_status,
    )
    return True


if __name__ == "__main__":
    with exit_codes():
        runs = JobFolders(Path(os.environ["VITRAIL_RUNS"]).expanduser())
        for line in recover(runs, JobTable(os.environ["RAY_ADDRESS"]), JobArchive.from_environment()):
            print(line, flush=True)
