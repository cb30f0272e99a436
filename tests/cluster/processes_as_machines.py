"""Ray's fake provider of machines, which are processes of this one, with a folder each for the code of jobs.

On a folder that is shared, a machine that is started for a job would replace the code under the feet of its driver.
"""

from typing import Any

import ray._private.ray_constants as constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class ProcessProvider(FakeMultiNodeProvider):  # type: ignore[misc]
    """To be named in a launcher's file, as the module of an `external` provider."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            before = constants.DEFAULT_RUNTIME_ENV_DIR_NAME
            constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"{before}_{self._next_node_id + 1}"
            try:
                super()._create_node_with_resources_and_labels(*arguments)
            finally:
                constants.DEFAULT_RUNTIME_ENV_DIR_NAME = before
