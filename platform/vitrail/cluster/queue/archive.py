"""A copy of the jobs' records and logs where a lost head does not take them along: what `VITRAIL_ARCHIVE` names.

    s3://bucket/jobs/20261123-101500-night-1/{job.json, log.txt, code.zip}

An archive that cannot be written never holds up a job: that is said once, in the job's log.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cluster.queue.record import CODE, LOG, RECORD, JobFolder, JobFolders
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.data.storage import Folder

ARCHIVE_VARIABLE = "VITRAIL_ARCHIVE"
"""On the head, and for clients that read without one: a folder, s3:// or gs://."""


class JobArchive:
    """Copies of one head's jobs, or of several heads' one after the other."""

    def __init__(self, place: "Folder") -> None:
        self._place = place
        self._failed = False

    @classmethod
    def from_environment(cls) -> "JobArchive | None":
        """What `VITRAIL_ARCHIVE` names; None where it is not set."""
        place = os.environ.get(ARCHIVE_VARIABLE)
        if not place:
            return None
        from vitrail.data.storage import Folder  # late: pyarrow takes 35 MB, and each job that waits has a process

        return cls(Folder.at(place))

    def keep(self, folder: JobFolder, *names: str) -> None:
        """Copy files of a job; what is not there is taken away in the archive too."""
        kept = self._place.child(folder.path.name)
        try:
            if kept.local is not None:
                kept.local.mkdir(parents=True, exist_ok=True)
            for name in names:
                path = folder.path / name
                if path.is_file():
                    kept.upload(path, name)
                else:
                    kept.delete(name)
        except (VitrailError, OSError) as error:
            if not self._failed:
                print(
                    f"queue: the archive cannot be written, and the job goes on: {error}", file=sys.stderr, flush=True
                )
            self._failed = True

    def fetch_missing(self, folders: JobFolders) -> int:
        """Copy the jobs that this machine does not have, and say how many; raises as `Folder.fetch`."""
        count = 0
        for name in self._place.folders():
            folder = folders.of(name)
            if folder.exists or self._place.size_bytes(f"{name}/{RECORD}") is None:
                continue
            folder.path.mkdir(parents=True, exist_ok=True)
            for file in (CODE, LOG, RECORD):  # the record last: with it, the folder is a job's
                if self._place.size_bytes(f"{name}/{file}") is not None:
                    aside = folder.path / f".{file}.part"
                    self._place.fetch(f"{name}/{file}", aside)
                    aside.rename(folder.path / file)
            count += 1
        return count

    def fetch(self, name: str, file: str, path: Path) -> None:
        """Copy one file of a job; raises as `Folder.fetch`."""
        self._place.child(name).fetch(file, path)
