"""Everything that imports ray: the worker's loop, the trainer, the tuner and batch prediction.

Ray reads most of its settings from the environment while it is imported, so they are set here, before any module of
this package can import it. What the user has set is left alone.
"""

import os

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Under `uv run`, Ray would ship the folder and resolve the environment again for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Relative paths would change their meaning inside a worker.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Places on machines that are there are given within a second. A group that asked for one on a lost machine, whose
    # loss was not noticed yet, asks anew after this time.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # Ranks that report unequally would wait for each other for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    # A worker whose peer fell silent hangs in an exchange that it cannot be called out of, and is killed either way.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Its notes on each execution would break ours.
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # Tune's tables would mix with ours.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Drivers and controllers take no CPU, so more processes than CPUs are no reason for a warning.
    "RAY_worker_maximum_startup_concurrency": "4",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
