"""A registered model for what is in production, apart from the one that candidates are registered in.

MLflow gives rights per registered model and not per alias: whoever may register a version may also move every alias of
its model. So where trainers and promoters are different people, promotion copies a version to a model of its own.
"""

from typing import Any

from vitrail.tracking.environment import as_default, connect, error_code, retry
from vitrail.tracking.registration import check_name, link_version
from vitrail.tracking.registry import WEIGHTS_TAG, Version, list_models, show

COPIED_TAG = "vitrail.copied_from"
"""Tag of a version: which version of another registered model it is a copy of."""
_TIMEOUT_S = 60.0


def copy_version(version: Version, into: str, *, tracking_uri: str) -> Version:
    """The version of the registered model `into` that has the same weights; copied unless it is there."""
    check_name(into)
    client = connect(tracking_uri)

    def call() -> int:
        found = _with_weights(version.tags[WEIGHTS_TAG], into, tracking_uri)
        if found is not None:
            return found
        _make_model(client, into)
        with as_default(tracking_uri):
            # Not MLflow's `copy_model_version`, whose copies know nothing of their logged model.
            copy = client.create_model_version(
                into,
                f"models:/{version.model_id}",
                run_id=version.run_id,
                tags={**version.tags, COPIED_TAG: version.uri},
                description=version.description,
                model_id=version.model_id,
            )
        link_version(client, str(version.model_id), into, int(copy.version))
        return int(copy.version)

    number = retry(call, tracking_uri=tracking_uri, timeout_s=_TIMEOUT_S)
    return show(into, tracking_uri=tracking_uri, version=str(number))


def _make_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def _with_weights(weights_sha256: str, name: str, tracking_uri: str) -> int | None:
    models = {model.name: model for model in list_models(tracking_uri=tracking_uri)}
    versions = models[name].versions if name in models else ()
    same = [version.number for version in versions if version.tags.get(WEIGHTS_TAG) == weights_sha256]
    return min(same, default=None)
