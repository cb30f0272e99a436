"""The model registry: checkpoints become versions, versions become checkpoints again, with every byte checked.

A version is one logged model of MLflow with the files that inference needs, a model card, and tags that can be
searched. The same weights make one version, however often they are registered.
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

from vitrail.checkpoint import INFO, STATE, WEIGHTS, CheckpointError, CheckpointInfo, file_sha256, read_info, verify
from vitrail.errors import UnknownNameError, UsageError
from vitrail.tracking.card import model_card
from vitrail.tracking.environment import as_default, connect, error_code, retry
from vitrail.tracking.store import artifact_location

FILES_TAG = "vitrail.files"
"""Tag of a version: JSON of the checksums of its files. In the database, so changing the files alone is noticed."""
WEIGHTS_TAG = "vitrail.weights_sha256"

_CARD = "MODEL_CARD.md"


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


def register(
    checkpoint: Path,
    *,
    name: str,
    tracking_uri: str,
    run_id: str | None = None,
    experiment: str = "vitrail",
    timeout_s: float = 60.0,
) -> Version:
    """Register a checkpoint folder; the version that already has these weights is returned as it is.

    The version belongs to `run_id`, or, without one, to `experiment`. Call it from one process per checkpoint.

    Raises:
        CheckpointError: the folder is no complete checkpoint, or its files do not match their checksums.
        TrackingError: MLflow did not answer within `timeout_s`.
    """
    if not re.fullmatch(r"[^/:.%\"']{1,250}", name):
        raise UsageError(f"a model cannot be called {name!r}; use letters, digits, - and _")
    info = read_info(checkpoint)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "model"
        files = _lay_out(checkpoint, info, name, folder)
        registration = _Registration(
            client=connect(tracking_uri),
            tracking_uri=tracking_uri,
            name=name,
            info=info,
            folder=folder,
            files=files,
            run_id=run_id,
            experiment=experiment,
        )
        number = retry(registration.run, tracking_uri=tracking_uri, timeout_s=timeout_s)
    return show(name, tracking_uri=tracking_uri, version=str(number))


def download(uri: str, dst: Path, *, tracking_uri: str) -> Path:
    """Fetch `models:/NAME@ALIAS` or `models:/NAME/NUMBER` into the folder `dst`, complete and checked, or not at all.

    A folder that already holds these files is left as it is.

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
            _check_files(dst, files)
        except CheckpointError as error:
            raise UsageError(
                f"{dst} holds something other than {version.uri} ({error.reason}); name a new folder"
            ) from None
        return dst
    with _folder_beside(dst) as aside:
        fetched, chosen = aside / "all", aside / "chosen"
        _fetch(version, fetched, tracking_uri)
        try:
            _check_files(fetched, files)
        except CheckpointError as error:
            raise CheckpointError(version.uri, error.reason) from None
        chosen.mkdir()
        for file in files:
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
        return [_model(client, registered) for registered in _pages(client.search_registered_models)]

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


@dataclass
class _Registration:
    """The steps of `register`. Each looks for its own outcome first, so that all of it may be repeated."""

    client: Any
    tracking_uri: str
    name: str
    info: CheckpointInfo
    folder: Path
    files: dict[str, str]
    run_id: str | None
    experiment: str

    def run(self) -> int:
        """Number of the version."""
        existing = self._version()
        if existing is not None:
            return existing
        model_id = self._logged_model()
        self._registered_model()
        with as_default(self.tracking_uri):
            self.client.create_model_version(
                self.name,
                f"models:/{model_id}",
                run_id=self.run_id,
                tags={**_tags(self.info), WEIGHTS_TAG: self.files[WEIGHTS], FILES_TAG: json.dumps(self.files)},
                description=(self.folder / _CARD).read_text(),
                model_id=model_id,
            )
        created = self._version()
        assert created is not None, "a version that was just created is found by its tag"
        return created

    def _version(self) -> int | None:
        found = self.client.search_model_versions(
            f"name = '{self.name}' and tags.`{WEIGHTS_TAG}` = '{self.files[WEIGHTS]}'"
        )
        return min((int(version.version) for version in found), default=None)

    def _logged_model(self) -> str:
        """Id of a logged model that has all files: an earlier one of these weights, completed if need be."""
        experiment_id = self._experiment_id()
        found = self.client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{WEIGHTS_TAG}` = '{self.files[WEIGHTS]}'"
        )
        model = next(iter(found), None)
        if model is None:
            model = self.client.create_logged_model(
                experiment_id,
                name=f"{self.info.recipe.name}-step-{self.info.step}".replace(".", "-"),
                source_run_id=self.run_id,
                tags={**_tags(self.info), WEIGHTS_TAG: self.files[WEIGHTS]},
                model_type="vitrail-segmentor",
            )
        model_id = str(model.model_id)
        if str(model.status) != "READY":
            self.client.log_model_artifacts(model_id, str(self.folder))
            if self.run_id is not None:
                self._link_to_run(model_id, self.run_id)
            self.client.finalize_logged_model(model_id, "READY")
        return model_id

    def _link_to_run(self, model_id: str, run_id: str) -> None:
        from mlflow.entities import LoggedModelOutput

        self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=self.info.step)])
        if self.info.scores is None:
            return
        for key in ("mIoU", "mAcc", "aAcc"):
            self.client.log_metric(
                run_id,
                f"registered/{key}",  # a name of its own: the run has its curve of val/mIoU already
                getattr(self.info.scores, key),
                timestamp=int((self.folder / INFO).stat().st_mtime * 1000),  # one point, however often sent
                step=self.info.step,
                dataset_name=self.info.data.name,
                dataset_digest=self.info.data.fingerprint[:36],
                model_id=model_id,
            )

    def _experiment_id(self) -> str:
        if self.run_id is not None:
            return str(self.client.get_run(self.run_id).info.experiment_id)
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(
            self.client.create_experiment(self.experiment, artifact_location(self.tracking_uri, self.experiment))
        )

    def _registered_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise


def _lay_out(checkpoint: Path, info: CheckpointInfo, name: str, folder: Path) -> dict[str, str]:
    """Make the folder that is uploaded, and return the checksums of its files.

    What training alone needs (its state) stays behind, and the description no longer lists it.
    """
    wanted = {file: checksum for file, checksum in info.files.items() if file != STATE}
    if WEIGHTS not in wanted:
        raise CheckpointError(str(checkpoint), f"its description does not list {WEIGHTS}")
    verify(checkpoint, info=info.model_copy(update={"files": wanted}))
    folder.mkdir()
    for file in wanted:
        (folder / file).symlink_to((checkpoint / file).resolve())
    description = json.loads((checkpoint / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**description, "files": wanted}, indent=2))
    (folder / _CARD).write_text(model_card(info, name=name, weights_sha256=wanted[WEIGHTS]))
    return {**wanted, **{file: file_sha256(folder / file) for file in (INFO, _CARD)}}


def _check_files(folder: Path, expected: dict[str, str]) -> None:
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            raise CheckpointError(str(folder), f"{name} is missing")
        if file_sha256(folder / name) != checksum:
            raise CheckpointError(str(folder), f"{name} has changed, its checksum is another")


def _tags(info: CheckpointInfo) -> dict[str, str]:
    tags = {
        "vitrail.recipe": info.recipe.name,
        "vitrail.recipe_digest": info.recipe.digest(),
        "vitrail.start": "random weights" if info.start is None else json.dumps(info.start),
        "vitrail.data": info.data.name,
        "vitrail.data_fingerprint": info.data.fingerprint,
        "vitrail.run_key": info.run_key,
        "vitrail.step": str(info.step),
        "vitrail.val_images_total": str(info.data.val_images),
    }
    if info.scores is not None:
        tags["vitrail.mIoU"] = repr(info.scores.mIoU)
        tags["vitrail.val_images"] = str(info.scores.images)
    return tags


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
