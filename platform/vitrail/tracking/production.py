"""A registered model for what is in production, apart from the one that candidates are registered in.

MLflow gives rights per registered model and not per alias: whoever may register a version may also move every alias of
its model. So where trainers and promoters are different people, promotion copies a version to a model of its own.
"""

from vitrail.tracking.environment import as_default, connect, retry
from vitrail.tracking.registration import check_name, link_version, make_model, version_with_weights
from vitrail.tracking.registry import WEIGHTS_TAG, Version, show

COPIED_TAG = "vitrail.copied_from"
"""Tag of a version: which version of another registered model it is a copy of."""
_TIMEOUT_S = 60.0


def copy_version(version: Version, into: str, *, tracking_uri: str) -> Version:
    """The version of the registered model `into` that has the same weights; copied unless it is there."""
    check_name(into)
    client = connect(tracking_uri)

    def call() -> int:
        found = version_with_weights(client, into, version.tags[WEIGHTS_TAG])
        if found is not None:
            return found
        make_model(client, into)
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
