"""The checkpoints of a run, in a folder of this machine or in an object store: save, find, fetch, prune.

    store = CheckpointStore.at("s3://bucket/runs/x/checkpoints")
    found = store.newest()                      # of the highest step, every checksum right
    folder = found.fetch() if found else None   # on this machine

A checkpoint is complete when it has its `checkpoint.json`. On a disk it gets its name when it is complete; a store
cannot rename, so there the description is uploaded last and deleted first. What a process was writing or deleting when
it was killed is no checkpoint, and a later save clears it away. Parts of an upload that was cut off are not listed by a
store, and it charges for them until a lifecycle rule of the bucket ends them (AbortIncompleteMultipartUpload).
"""

import math
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import EEXIST, ENOTEMPTY
from itertools import count
from pathlib import Path
from typing import Self

from vitrail.aside import ABANDONED_AFTER_S, delete_aside, flush, writing_folder
from vitrail.checkpoint import (
    INFO,
    STATE,
    CheckpointError,
    CheckpointInfo,
    CheckpointWriteError,
    ScoreRecord,
    check_files,
    file_sha256,
    info_bytes,
    parse_info,
    superseded,
)
from vitrail.checkpoint_cache import checkpoint_cache, keep_checkpoint
from vitrail.data.storage import Folder, Place, StorageError
from vitrail.errors import UsageError

_LOOKS = 10
"""How often at most checkpoints are listed again because some were saved or deleted meanwhile."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint: where it lies, and its description. `fetch` checks its other files."""

    place: Folder
    info: CheckpointInfo
    saved_ns: int
    """When it became complete, by the clock of the disk or store."""

    @classmethod
    def at(cls, place: Place) -> "StoredCheckpoint":
        """The checkpoint at a path or URI.

        Raises:
            UsageError: there is none at that place, or the store cannot be reached.
            CheckpointError: it is damaged or of a newer format.
        """
        folder = Folder.at(place)
        saved_ns = next((entry.modified_ns for entry in folder.files() if entry.name == INFO), None)
        if saved_ns is None:
            raise UsageError(f"{folder} is not a checkpoint: it has no {INFO}")
        return cls(folder, parse_info(folder.read(INFO), str(folder)), saved_ns)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.place.name

    @property
    def miou(self) -> float | None:
        """Its validation score, 0..1; None where there is none."""
        scores = self.info.scores
        return None if scores is None or math.isnan(scores.mIoU) else scores.mIoU

    def __str__(self) -> str:
        """Its path or URI, without a query."""
        return str(self.place)

    def fetch(self, *, state: bool = True) -> Path:
        """Its folder on this machine, every file checked: itself, or a copy in `VITRAIL_CACHE`, fetched once.

        Without `state` it is enough to predict, and the state is neither fetched nor checked.

        Raises:
            CheckpointError: a file is missing or changed.
            UsageError: the store cannot be reached, or the copy cannot be written.
        """
        files = {name: checksum for name, checksum in self.info.files.items() if state or name != STATE}
        if self.place.local is None:
            return keep_checkpoint(self.place, self.info, files, saved_ns=self.saved_ns)
        check_files(self.place.local, files)
        return self.place.local


@dataclass(frozen=True)
class CheckpointStore:
    """The folder of a run's checkpoints, on a disk that all its machines reach or in an object store."""

    root: Folder

    @classmethod
    def at(cls, place: Place) -> Self:
        """The store at a path or URI; nothing need be there yet."""
        return cls(Folder.at(place))

    def checkpoints(self) -> list[StoredCheckpoint]:
        """All complete checkpoints by step, then by time; others are warned of. Checksums are left to `fetch`.

        Raises:
            StorageError: the store cannot be reached.
        """
        names = self._names()
        for _ in range(_LOOKS):
            found = [checkpoint for name in names if (checkpoint := self._get_or_warn(name)) is not None]
            before, names = names, self._names()
            if names == before:
                break  # otherwise the only one listed may be deleted, and a newer one there
        return sorted(found, key=_age)

    def newest(self, *, state: bool = True) -> StoredCheckpoint | None:
        """The undamaged one of the highest step, fetched (see there); damaged ones are warned of and passed over.

        Raises:
            UsageError: the store cannot be reached, or the copy cannot be written: no reason to take an older one.
        """
        return self._first_good(_age, state=state)

    def best(self, *, state: bool = False) -> StoredCheckpoint | None:
        """The undamaged one of the highest mIoU, the later among equals; otherwise as `newest`."""
        return self._first_good(_score, state=state)

    def save(
        self, info: CheckpointInfo, write: Callable[[Path], None], *, size_bytes: int | None = None
    ) -> StoredCheckpoint:
        """Add the checkpoint whose files `write` puts into the folder it is given; complete, or not there at all.

        Raises:
            CheckpointWriteError: the disk is full or the store refuses; its message tells `size_bytes` as needed.
        """
        local = self.root.local
        staging = checkpoint_cache() if local is None else local
        try:
            with writing_folder(staging) as aside:
                write(aside)
                complete = _complete(aside, info)
                return self._upload(aside, complete) if local is None else self._rename(aside, local, complete)
        except OSError as error:
            place = str(staging) if local else f"{staging} (VITRAIL_CACHE), on its way to {self.root}"
            facts = (error.strerror or str(error), size_bytes, _free_bytes(staging))
            raise CheckpointWriteError(place, info.step, *facts, self._last_name()) from error
        except StorageError as error:  # asking it what is there would take as long again
            raise CheckpointWriteError(str(self.root), info.step, str(error), size_bytes) from error
        except UsageError as error:
            facts = (str(error), size_bytes, None)
            raise CheckpointWriteError(str(self.root), info.step, *facts, self._last_name()) from error

    def add_scores(self, name: str, scores: ScoreRecord) -> None:
        """Write the scores of a validation into the checkpoint of a name; its other files stay as they are.

        Raises:
            CheckpointError, UsageError: it is damaged or gone, or the place cannot be written.
        """
        info = StoredCheckpoint.at(self.root.child(name)).info
        scored = info.model_copy(update={"scores": scores, "validating": False})
        self.root.write(f"{name}/{INFO}", info_bytes(scored))

    def prune(self, *, newest: int, best: int) -> list[str]:
        """Delete all but the newest, the best and those whose score is still to come; see `superseded`.

        Returns the names of those deleted.
        One that cannot be deleted is warned of and stays: no reason for a run to end.
        """
        found = self.checkpoints()
        scored = {each.name: (each.info.step, each.miou) for each in found}
        awaited = {each.name for each in found if each.info.validating}
        deleted = []
        for name in superseded(scored, newest=newest, best=best):
            if name in awaited:
                continue
            try:
                self.delete(name)
                deleted.append(name)
            except (OSError, UsageError) as error:
                warnings.warn(f"{self.root}/{name} cannot be deleted: {error}", stacklevel=2)
        return deleted

    def delete(self, name: str) -> None:
        """Delete a checkpoint; interrupted at any moment, it is whole or none. None need be there.

        Raises:
            OSError, UsageError: the disk or the store refuses.
        """
        if self.root.local is not None:
            delete_aside(self.root.local / name)
            return
        self.root.delete(f"{name}/{INFO}")
        self.root.delete_folder(name)

    def _names(self) -> list[str]:
        return [name for name in self.root.folders() if name.startswith("step_")]

    def _get_or_warn(self, name: str) -> StoredCheckpoint | None:
        try:
            return self._get(name)
        except CheckpointError as error:
            warnings.warn(f"{error}; passing it over", stacklevel=4)
            return None

    def _get(self, name: str) -> StoredCheckpoint | None:
        """None where there is nothing any more. Asks through the root's connection, not one for each checkpoint."""
        place = self.root.child(name)
        entries = {entry.name: entry for entry in self.root.files(name)}
        if not entries:
            return None
        if INFO not in entries:
            reason = f"it has no {INFO}: it is being written or deleted, or that was interrupted"
            raise CheckpointError(str(place), reason)
        try:
            info = parse_info(self.root.read(f"{name}/{INFO}"), str(place))
        except FileNotFoundError:
            return None
        missing = sorted(info.files.keys() - entries.keys())
        if missing:
            raise CheckpointError(str(place), f"{', '.join(missing)} is missing")
        return StoredCheckpoint(place, info, entries[INFO].modified_ns)

    def _first_good(
        self, rank: Callable[[StoredCheckpoint], tuple[float, ...]], *, state: bool
    ) -> StoredCheckpoint | None:
        """The highest of `rank` that is good; one of rank () is left out."""
        for _ in range(_LOOKS):
            gone = False
            for found in sorted(filter(rank, self.checkpoints()), key=rank, reverse=True):
                try:
                    found.fetch(state=state)
                    return found
                except CheckpointError as error:
                    gone = found.place.size_bytes(INFO) is None
                    if gone:  # deleted since it was listed, so there is a newer or better one
                        break
                    warnings.warn(f"{error}; using the next one", stacklevel=3)
            if not gone:
                return None
        raise StorageError(str(self.root), f"its checkpoints were deleted as soon as they were listed, {_LOOKS} times")

    def _rename(self, aside: Path, root: Path, info: CheckpointInfo) -> StoredCheckpoint:
        for attempt in count():
            folder = root / (f"step_{info.step:06d}-{attempt}" if attempt else f"step_{info.step:06d}")
            try:
                aside.rename(folder)
                break
            except OSError as error:
                if error.errno not in (EEXIST, ENOTEMPTY):
                    raise
        flush(root)
        return StoredCheckpoint(Folder.at(folder), info, (folder / INFO).stat().st_mtime_ns)

    def _upload(self, aside: Path, info: CheckpointInfo) -> StoredCheckpoint:
        """Under a name that no other process can be writing to, or be asked to find there."""
        self._clear_store()
        name = f"step_{info.step:06d}-{uuid.uuid4().hex[:8]}"
        try:
            for file in info.files:
                self.root.upload(aside / file, f"{name}/{file}")
                if self.root.size_bytes(f"{name}/{file}") != (aside / file).stat().st_size:
                    raise StorageError(f"{self.root}/{name}/{file}", "was uploaded and has another size there")
            self.root.write(f"{name}/{INFO}", info_bytes(info))
            saved = self._get(name)
            assert saved is not None
            return saved
        except BaseException:
            with suppress(UsageError):
                self.delete(name)
            raise

    def _clear_store(self) -> None:
        """Delete what was left without a description long ago, or whose files are all deleted."""
        for name in self._names():
            files = self.root.files(name)
            if any(file.name == INFO for file in files):
                continue
            changed_ns = max((file.modified_ns for file in files), default=0)
            if time.time() - changed_ns / 1e9 > ABANDONED_AFTER_S:
                try:
                    self.root.delete_folder(name)
                except UsageError as error:  # a store that only takes
                    warnings.warn(f"what is left in {self.root}/{name} cannot be deleted: {error}", stacklevel=2)

    def _last_name(self) -> str | None:
        with suppress(OSError, UsageError):
            return next((found.name for found in reversed(self.checkpoints())), None)
        return None


def _complete(aside: Path, info: CheckpointInfo) -> CheckpointInfo:
    """Describe the files of a folder, and have all of it on the disk."""
    files = {path.name: file_sha256(path) for path in sorted(aside.iterdir())}
    complete = info.model_copy(update={"files": files})
    (aside / INFO).write_bytes(info_bytes(complete))
    for path in (*aside.iterdir(), aside):
        flush(path)
    return complete


def _free_bytes(folder: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _age(found: StoredCheckpoint) -> tuple[int, int]:
    return found.info.step, found.saved_ns


def _score(found: StoredCheckpoint) -> tuple[float, ...]:
    return () if found.miou is None else (found.miou, *_age(found))
