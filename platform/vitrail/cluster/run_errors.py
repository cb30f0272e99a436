"""How a training run can end otherwise than well, as errors, and from what Ray Train reports to one of them."""

from pathlib import Path

import ray.train

from vitrail.config import RunConfig
from vitrail.errors import VitrailError
from vitrail.training.watchdog import STALLS, Stall, read_stalls


class TrainingError(VitrailError):
    """Training failed on some workers."""

    def __init__(self, name: str, failures: dict[int, str], folder: str) -> None:
        super().__init__(name, failures, folder)
        self.name, self.failures, self.folder = name, failures, folder

    def __str__(self) -> str:
        lines = [f"rank {rank}: {text}" for rank, text in sorted(self.failures.items())]
        return f"run {self.name} failed\n" + "\n".join(lines) + f"\nits checkpoints are kept in {self.folder}"


class StalledError(VitrailError):
    """Workers made no step for too long, and were ended."""

    def __init__(self, name: str, timeout_s: float, stalls: list[Stall], folder: str) -> None:
        super().__init__(name, timeout_s, stalls, folder)
        self.name, self.timeout_s, self.stalls, self.folder = name, timeout_s, stalls, folder

    def __str__(self) -> str:
        # The others waited for the one that hung, whose watchdog was the first to fire.
        return (
            f"run {self.name} was ended because it made no step for {self.timeout_s:g} s: {self.stalls[0]}\n"
            f"its checkpoints are kept in {self.folder}; --resume continues it"
        )


class StartError(VitrailError):
    """The workers found no place, or could not be joined to a group."""

    def __init__(self, name: str, cause: str, way_out: str) -> None:
        super().__init__(name, cause, way_out)
        self.name, self.cause, self.way_out = name, cause, way_out

    def __str__(self) -> str:
        return f"the workers of run {self.name} could not start: {self.cause}\n{self.way_out}"


class RunStoppedError(VitrailError):
    """The run was asked to stop, and has saved its state."""

    def __init__(self, name: str, step: int) -> None:
        super().__init__(name, step)
        self.name, self.step = name, step

    def __str__(self) -> str:
        return f"run {self.name} was stopped after step {self.step} and is saved; --resume continues it"


def explained(config: RunConfig, error: Exception) -> Exception:
    """Our own error where a worker raised one; otherwise each rank's last line."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    ours = [failure for failure in failures.values() if isinstance(failure, VitrailError)]
    if ours:
        return ours[0]
    stalls = read_stalls(Path(config.folder) / STALLS)
    if stalls:
        return StalledError(config.name, config.stall_timeout_s, stalls, config.folder)
    if isinstance(error, ray.train.ControllerError):
        return _start_error(config, error.controller_failure)
    texts = {rank: f"{type(failure).__name__}: {failure}".strip() for rank, failure in failures.items()}
    return TrainingError(config.name, texts or {-1: str(error)}, config.folder)


def _start_error(config: RunConfig, failure: Exception) -> StartError:
    text = str(failure).strip()
    if "process_group" in text:
        way_out = (
            "they could not reach each other: where Ray is started, set GLOO_SOCKET_IFNAME (on GPUs also "
            "NCCL_SOCKET_IFNAME) to the network interface that joins the machines; `ip -br address` lists them"
        )
        return StartError(config.name, text.splitlines()[-1], way_out)
    return StartError(config.name, text, f"`ray status` shows what is free; --resume continues from {config.folder}")
