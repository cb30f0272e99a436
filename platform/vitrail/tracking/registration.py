"""Registering checkpoints: the same weights make one version, however often and through whatever failures."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.checkpoint import INFO, WEIGHTS, CheckpointInfo, read_info
from vitrail.errors import UsageError
from vitrail.tracking.card import model_card
from vitrail.tracking.environment import as_default, connect, error_code, retry
from vitrail.tracking.model_folder import DATA
from vitrail.tracking.registry import FILES_TAG, WEIGHTS_TAG, Version, show
from vitrail.tracking.served_model import ServedFiles, write_served_model
from vitrail.tracking.store import artifact_location

_MAX_DESCRIPTION = 5000
"""Characters; what the column of MLflow's database holds, where that database checks it."""


def register(
    checkpoint: Path,
    *,
    name: str,
    tracking_uri: str,
    run_id: str | None = None,
    experiment: str = "vitrail",
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
    timeout_s: float = 60.0,
) -> Version:
    """Register a checkpoint folder; the version that already has these weights is returned as it is.

    The version belongs to `run_id`, or, without one, to `experiment`. Its page shows the `pictures`: RGB (H, W, 3), by
    their titles. Call it from one process per checkpoint.

    Raises:
        CheckpointError: the folder is no complete checkpoint, or its files do not match their checksums.
        TrackingError: MLflow did not answer within `timeout_s`.
    """
    check_name(name)
    info = read_info(checkpoint)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "model"
        files = write_served_model(checkpoint, folder, name=name, pictures=pictures)
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


def make_model(client: Any, name: str) -> None:
    """Make a registered model unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def version_with_weights(client: Any, name: str, sha256: str) -> int | None:
    """Number of the first version of `name` that has these weights; None where there is none, or no such model."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{WEIGHTS_TAG}` = '{sha256}'")
    return min((int(version.version) for version in found), default=None)


def link_version(client: Any, model_id: str, name: str, number: int) -> None:
    """Let the logged model's page name the version. MLflow's server does so by itself, a local store does not."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    tag = client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS)
    known, this = json.loads(tag or "[]"), {"name": name, "version": str(number)}
    if not any(str(each["version"]) == str(number) and each["name"] == name for each in known):
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*known, this])})


def check_name(name: str) -> None:
    """Raise a `UsageError` unless MLflow takes the name for a registered model, in addresses too."""
    if not re.fullmatch(r"[^/:.%\"']{1,250}", name):
        raise UsageError(f"a model cannot be called {name!r}; use letters, digits, - and _")


@dataclass
class _Registration:
    """The steps of `register`. Each looks for its own outcome first, so that all of it may be repeated."""

    client: Any
    tracking_uri: str
    name: str
    info: CheckpointInfo
    folder: Path
    files: ServedFiles
    run_id: str | None
    experiment: str
    uploaded: set[str] = field(default_factory=set)
    """Ids of the logged models that have this folder's files."""

    def run(self) -> int:
        """Number of the version."""
        existing = self._version()
        if existing is not None:
            return existing
        model_id = self._logged_model()
        make_model(self.client, self.name)
        with as_default(self.tracking_uri):
            self.client.create_model_version(
                self.name,
                f"models:/{model_id}",
                run_id=self.run_id,
                tags={**_tags(self.info), WEIGHTS_TAG: self.weights, FILES_TAG: json.dumps(self.files.sha256)},
                description=self._description(model_id),
                model_id=model_id,
            )
        created = self._version()
        assert created is not None, "a version that was just created is found by its tag"
        link_version(self.client, model_id, self.name, created)
        return created

    @property
    def weights(self) -> str:
        """Checksum of the weights, by which a version is known."""
        return self.files.sha256[f"{DATA}/{WEIGHTS}"]

    def _version(self) -> int | None:
        return version_with_weights(self.client, self.name, self.weights)

    def _logged_model(self) -> str:
        """Id of a logged model that has all files: a new one, or an earlier one of these weights.

        The files are uploaded to an earlier one too, complete or not: those of another revision of the sources, say,
        are not the ones whose checksums the version will have.
        """
        experiment_id = self._experiment_id()
        found = self.client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{WEIGHTS_TAG}` = '{self.weights}'"
        )
        model = next(iter(found), None)
        if model is None:
            model = self.client.create_logged_model(
                experiment_id,
                name=f"{self.info.recipe.name}-step-{self.info.step}".replace(".", "-"),
                source_run_id=self.run_id,
                tags={**_tags(self.info), WEIGHTS_TAG: self.weights},
                model_type="vitrail-segmentor",
            )
        model_id = str(model.model_id)
        if model_id not in self.uploaded:
            self.client.log_model_artifacts(model_id, str(self.folder))
            self.uploaded.add(model_id)
        if str(model.status) != "READY":
            if self.run_id is not None:
                self._link_to_run(model_id, self.run_id)
            self.client.finalize_logged_model(model_id, "READY")
        return model_id

    def _description(self, model_id: str) -> str:
        """The card with addresses that a browser on MLflow's own pages can follow."""
        files = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path="
        pictures = {title: files + file for title, file in self.files.pictures.items()}
        card = model_card(
            self.info, name=self.name, weights_sha256=self.weights, pictures=pictures, max_chars=_MAX_DESCRIPTION
        )
        return card[:_MAX_DESCRIPTION]

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
                timestamp=int((self.folder / DATA / INFO).stat().st_mtime * 1000),  # one point, however often sent
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


def _tags(info: CheckpointInfo) -> dict[str, str]:
    tags = {
        "vitrail.recipe": info.recipe.name,
        "vitrail.recipe_digest": info.recipe.digest(),
        "vitrail.start": "random weights" if info.start is None else json.dumps(info.start),
        "vitrail.data": info.data.name,
        "vitrail.data_fingerprint": info.data.fingerprint,
        "vitrail.data_uri": info.data.uri or "",
        "vitrail.code": info.versions.get("code", ""),
        "vitrail.run_key": info.run_key,
        "vitrail.step": str(info.step),
        "vitrail.val_images_total": str(info.data.val_images),
    }
    if info.scores is not None:
        tags["vitrail.mIoU"] = repr(info.scores.mIoU)
        tags["vitrail.val_images"] = str(info.scores.images)
    return {key: value for key, value in tags.items() if value}
