"""The model registry: what versions there are, and versions as checkpoints again, with every byte checked.

A version is one logged model of MLflow, whose files `vitrail.tracking.served_model` describes, with tags that can be
searched; `vitrail.tracking.registration` makes them.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitrail.checkpoint import CheckpointError, check_files
from vitrail.errors import UnknownNameError, UsageError
from vitrail.tracking.alias_lock import LOCK_TAG
from vitrail.tracking.environment import as_default, connect, retry

FILES_TAG = "vitrail.files"
"""Tag of a version: JSON of the checksums of its files. In the database, so changing the files alone is noticed."""
WEIGHTS_TAG = "vitrail.weights_sha256"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    run_id: str | None
    model_id: str | None
    description: str
    created: datetime
    tags: dict[str, str] = field(repr=False)
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """`models:/NAME/NUMBER`."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A registered model: its versions, newest first, and the versions that aliases point to."""

    name: str
    versions: tuple[Version, ...]
    aliases: dict[str, int]


def download(uri: str, dst: Path, *, tracking_uri: str) -> Path:
    """Fetch `models:/NAME@ALIAS` or `models:/NAME/NUMBER` into the folder `dst`, complete and checked, or not at all.

    `dst/data` is then a checkpoint's folder. A folder that already holds these files is left as it is.

    Raises:
        UsageError: not such an address, an unknown model, version or alias, or `dst` holds something else.
        CheckpointError: the store's files are missing or changed.
        TrackingError: MLflow did not answer.
    """
    version = resolve(uri, tracking_uri=tracking_uri)
    if FILES_TAG not in version.tags:
        raise UsageError(f"{version.uri} was not registered by vitrail: it has no tag {FILES_TAG}")
    files: dict[str, str] = json.loads(version.tags[FILES_TAG])
    if dst.exists() and any(dst.iterdir()):
        try:
            check_files(dst, files)
        except CheckpointError as error:
            raise UsageError(
                f"{dst} holds something other than {version.uri} ({error.reason}); name a new folder"
            ) from None
        return dst
    with _folder_beside(dst) as aside:
        fetched, chosen = aside / "all", aside / "chosen"
        _fetch(version, fetched, tracking_uri)
        try:
            check_files(fetched, files)
        except CheckpointError as error:
            raise CheckpointError(version.uri, error.reason) from None
        chosen.mkdir()
        for file in files:
            (chosen / file).parent.mkdir(parents=True, exist_ok=True)
            (fetched / file).rename(chosen / file)
        chosen.replace(dst)
    return dst


def resolve(uri: str, *, tracking_uri: str) -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` points to."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([\w-]+)|/(\d+))", uri)
    if match is None:
        raise UsageError(f"{uri!r} is not of the form models:/NAME@ALIAS or models:/NAME/NUMBER")
    name, alias, number = match.groups()
    return show(name, tracking_uri=tracking_uri, version=alias or number)


def list_models(*, tracking_uri: str) -> list[Model]:
    """All registered models by name."""
    client = connect(tracking_uri)

    def call() -> list[Model]:
        found = _pages(client.search_registered_models)
        return [_model(client, registered) for registered in found if LOCK_TAG not in registered.tags]

    return sorted(retry(call, tracking_uri=tracking_uri, timeout_s=10), key=lambda model: model.name)


def get_model(name: str, *, tracking_uri: str) -> Model:
    """One registered model.

    Raises:
        UnknownNameError: there is none of that name; the message names the closest one.
    """
    models = {model.name: model for model in list_models(tracking_uri=tracking_uri)}
    if name not in models:
        raise UnknownNameError("model", name, models)
    return models[name]


def aliased(name: str, alias: str, *, tracking_uri: str) -> int | None:
    """Number of the version that has an alias; None where nothing has it, or there is no such model yet."""
    models = {model.name: model for model in list_models(tracking_uri=tracking_uri)}
    return models[name].aliases.get(alias) if name in models else None


def show(name: str, *, tracking_uri: str, version: str) -> Version:
    """One version, by its number or by an alias.

    Raises:
        UnknownNameError: no such model, version or alias.
    """
    model = get_model(name, tracking_uri=tracking_uri)
    number = version if version.isdecimal() else str(model.aliases.get(version, ""))
    by_number = {str(entry.number): entry for entry in model.versions}
    if number not in by_number:
        kind = "version" if version.isdecimal() else "alias"
        raise UnknownNameError(f"{kind} of model {name!r}:", version, by_number if kind == "version" else model.aliases)
    return by_number[number]


@contextmanager
def _folder_beside(dst: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `dst`, so that what is complete there can be renamed to `dst`."""
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(dir=dst.parent, prefix=f".{dst.name}-")
    except OSError as error:
        raise UsageError(f"cannot write {dst} ({error.strerror}); name another folder") from None
    with aside as name:
        yield Path(name)


def _fetch(version: Version, dst: Path, tracking_uri: str) -> None:
    from mlflow.artifacts import download_artifacts

    def call() -> None:
        shutil.rmtree(dst, ignore_errors=True)
        with as_default(tracking_uri):
            download_artifacts(artifact_uri=version.uri, dst_path=str(dst))

    retry(call, tracking_uri=tracking_uri, timeout_s=60)


def _model(client: Any, registered: Any) -> Model:
    aliases = {alias: int(number) for alias, number in registered.aliases.items()}
    found = _pages(client.search_model_versions, f"name = '{registered.name}'")
    versions = [_version(entry, aliases) for entry in found]
    return Model(
        name=registered.name,
        versions=tuple(sorted(versions, key=lambda version: -version.number)),
        aliases=aliases,
    )


def _version(entry: Any, aliases: dict[str, int]) -> Version:
    number = int(entry.version)
    return Version(
        name=entry.name,
        number=number,
        run_id=entry.run_id or None,
        model_id=_logged_model_id(entry.source),
        description=entry.description or "",
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, tz=UTC),
        tags=dict(entry.tags),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
    )


def _logged_model_id(source: str) -> str | None:
    """Id in `models:/m-...`. A local store keeps it there alone."""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def _pages(search: Any, filter_string: str | None = None) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(filter_string=filter_string, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
