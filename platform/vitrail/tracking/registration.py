"""Registering checkpoints: the same weights make one version, however often and through whatever failures."""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.checkpoint import INFO, STATE, WEIGHTS, CheckpointError, CheckpointInfo, file_sha256, read_info, verify
from vitrail.errors import UsageError
from vitrail.tracking.card import model_card
from vitrail.tracking.environment import as_default, connect, error_code, retry
from vitrail.tracking.registry import FILES_TAG, WEIGHTS_TAG, Version, show
from vitrail.tracking.store import artifact_location

_CARD = "MODEL_CARD.md"


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
    _check_name(name)
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


def copy_version(source: Version, dst: str, *, tracking_uri: str, timeout_s: float = 20.0) -> Version:
    """The version of the registered model `dst` that has the weights of `source`, copied unless it is there.

    Where people sign in, candidates and what is in production are two models, and this is the way from one to the
    other. Tags, card and files come along, aliases do not.

    Raises:
        UsageError: it is the same model, or `source` was not registered by us.
        TrackingError: MLflow did not answer, or did not allow it.
    """
    _check_name(dst)
    if dst == source.name:
        raise UsageError(f"{source.uri} is a version of {dst} already; name another model")
    if WEIGHTS_TAG not in source.tags:
        raise UsageError(f"{source.uri} was not registered by vitrail: it has no tag {WEIGHTS_TAG}")
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    def call() -> int:
        existing = _version_of_weights(client, dst, source.tags[WEIGHTS_TAG])
        if existing is not None:
            return existing
        try:
            return int(client.copy_model_version(source.uri, dst).version)
        except MlflowException as error:
            # MLflow hides what was refused behind a guess of its own.
            raise error.__cause__ if isinstance(error.__cause__, MlflowException) else error  # noqa: B904

    number = retry(call, tracking_uri=tracking_uri, timeout_s=timeout_s)
    return show(dst, tracking_uri=tracking_uri, version=str(number))


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[^/:.%\"']{1,250}", name):
        raise UsageError(f"a model cannot be called {name!r}; use letters, digits, - and _")


def _version_of_weights(client: Any, name: str, weights_sha256: str) -> int | None:
    """Number of the first version of `name` with these weights."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{WEIGHTS_TAG}` = '{weights_sha256}'")
    return min((int(version.version) for version in found), default=None)


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
        return _version_of_weights(self.client, self.name, self.files[WEIGHTS])

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
