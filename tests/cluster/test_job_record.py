"""The folders of jobs: written whole, read by others, and damaged ones told apart."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vitrail.cluster.holding import hold
from vitrail.cluster.queue.archive import JobArchive
from vitrail.cluster.queue.policy import Demand
from vitrail.cluster.queue.record import (
    ALIVE,
    CODE,
    LOG,
    RECORD,
    RUNNING,
    SUCCEEDED,
    DamagedRecordError,
    JobFolder,
    JobFolders,
    JobRecord,
)
from vitrail.cluster.queue.script_process import ScriptProcess
from vitrail.data.storage import Folder

RECORD_OF_NIGHT = JobRecord(
    id="night-1",
    notes={"vitrail.name": "night"},
    entrypoint="exec python -m vitrail.cluster.queue.entry jobs/train.py",
    environment={"VITRAIL_JOB": "night-1"},
    demand=Demand(workers=8, gpus_per_worker=0.5, min_workers=2),
    priority=3,
    preemptible=True,
    queued_at=100.0,
)


@pytest.fixture
def folders(tmp_path: Path) -> JobFolders:
    return JobFolders(tmp_path / "runs")


def add(folders: JobFolders, name: str, record: JobRecord) -> JobFolder:
    folder = folders.of(name)
    folder.path.mkdir(parents=True)
    folder.save(record)
    return folder


def test_record_comes_back_as_it_was_written(folders: JobFolders) -> None:
    folder = add(folders, "1-night-1", RECORD_OF_NIGHT)
    assert folder.load() == RECORD_OF_NIGHT
    changed = folders.change(folder, lambda record: replace(record, state=RUNNING, started_at=101.0))
    assert folder.load() == changed
    assert changed.queued().started_at == 101.0
    assert RECORD_OF_NIGHT.queued().waits


def test_only_jobs_whose_process_lives_are_in_the_queue(folders: JobFolders) -> None:
    night = add(folders, "1-night-1", RECORD_OF_NIGHT)
    add(folders, "2-dead-1", replace(RECORD_OF_NIGHT, id="dead-1"))
    over = add(folders, "3-over-1", replace(RECORD_OF_NIGHT, id="over-1", state=SUCCEEDED))
    with hold(night.path / ALIVE), hold(over.path / ALIVE), folders.locked():
        assert list(folders.living()) == ["night-1"]


def test_records_of_jobs_that_are_over_are_not_read_to_see_who_is_in_the_queue(
    folders: JobFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        night = add(folders, f"{number}-night-{number}", replace(RECORD_OF_NIGHT, id=f"night-{number}"))
        with hold(night.path / ALIVE):
            assert list(folders.living()) == [f"night-{number}"]
            folders.change(night, lambda record: replace(record, state=SUCCEEDED))
            assert not folders.living()
    monkeypatch.setattr(JobFolder, "alive", property(lambda folder: pytest.fail(f"{folder.path} was looked at")))
    assert not folders.living()
    assert len(folders.all()) == 3


def test_damaged_record_is_said_to_be_one(folders: JobFolders) -> None:
    folder = add(folders, "1-night-1", RECORD_OF_NIGHT)
    whole = (folder.path / RECORD).read_text()
    for text in (whole[:50], "[]", whole.replace('"priority": 3', '"priority": "high"')):
        (folder.path / RECORD).write_text(text)
        with pytest.raises(DamagedRecordError, match=r"job\.json is not a job's record"):
            folder.load()


def test_archive_gives_back_what_a_lost_disk_had(folders: JobFolders, tmp_path: Path) -> None:
    folder = add(folders, "1-night-1", RECORD_OF_NIGHT)
    (folder.path / LOG).write_text("begun\n")
    (folder.path / CODE).write_bytes(b"code")
    archive = JobArchive(Folder.at(tmp_path / "archive"))
    archive.keep(folder, LOG, CODE, RECORD)
    other = JobFolders(tmp_path / "other")
    assert archive.fetch_missing(other) == 1
    assert archive.fetch_missing(other) == 0
    assert other.of("1-night-1").load() == RECORD_OF_NIGHT
    assert (other.root / "1-night-1" / LOG).read_text() == "begun\n"
    (folder.path / CODE).unlink()
    archive.keep(folder, CODE)
    assert not (tmp_path / "archive/1-night-1" / CODE).exists()


def test_archive_that_cannot_be_written_is_said_once_and_holds_up_nothing(
    folders: JobFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = add(folders, "1-night-1", RECORD_OF_NIGHT)
    (tmp_path / "file").write_text("")
    archive = JobArchive(Folder.at(tmp_path / "file"))
    archive.keep(folder, RECORD)
    archive.keep(folder, RECORD)
    assert capsys.readouterr().err.count("the archive cannot be written, and the job goes on") == 1


def test_script_is_copied_to_the_log_and_dies_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import signal\nprint('run  5/60  training  00:01:05 left', flush=True)\nsignal.pause()\n")
    parent = f"""\
import os, sys
from pathlib import Path
from vitrail.cluster.queue.script_process import ScriptProcess
script = ScriptProcess([{str(script)!r}], environment=os.environ, log=Path({str(tmp_path / "log")!r}))
while script.seconds_left is None:
    assert script.ended(0.05) is None
print(script.seconds_left, flush=True)
script.ended(20)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        copied, said = process.stdout.readline(), process.stdout.readline()
        assert (tmp_path / "log").read_text() == copied
        assert float(said) == 65
        process.kill()
        assert process.stdout.read() == ""  # which ends when the script, who has the other end too, is gone
    assert copied == "run  5/60  training  00:01:05 left\n"


def test_exit_code_of_a_script_is_as_a_shell_gives_it(tmp_path: Path) -> None:
    for text, code in (("raise SystemExit(7)", 7), ("import os, signal\nos.kill(os.getpid(), 9)", 137)):
        (tmp_path / "script.py").write_text(text)
        process = ScriptProcess([str(tmp_path / "script.py")], environment={}, log=tmp_path / "log")
        assert process.ended(60) == code


def test_secrets_and_broken_bytes_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's traceback may hold an address with its password; an odd byte goes through as it is."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "for part in (b'at http://ada:pw1', b'23@mlflow/x\\n', b'\\xff wJalr', b'XUtnFEMI, done'):\n"
        "    os.write(1, part)\n"
    )
    process = ScriptProcess([str(tmp_path / "script.py")], environment={}, log=tmp_path / "log")
    assert process.ended(60) == 0
    assert (tmp_path / "log").read_bytes() == b"at http://ada:***@mlflow/x\n\xff ***, done"
