"""What the probe of a dry run finds on a cluster, and prints as JSON: facts, of which `preflight` makes findings."""

from typing import Any

from pydantic import Field

from vitrail.cluster.preflight.earlier_runs import EarlierRun
from vitrail.cluster.preflight.placement import NodeType
from vitrail.config import RunConfig
from vitrail.strict import Strict

MARK = "vitrail.preflight "
"""Begins the line of the probe's output that holds the facts."""

DEMAND_VARIABLE = "VITRAIL_DEMAND"
"""Set for the probe: the `Demand` of the job itself, as JSON."""


class Question(Strict):
    """What every machine is asked."""

    data: str | None = None
    tracking_uri: str | None = None
    checkpoints: str | None = None
    """Where checkpoints go: a folder that may not be there yet, s3:// or gs://."""
    pretrained: str | None = None
    repository: str | None = None
    """Of the hub, where `pretrained` is a name that timm has weights for."""
    packages: tuple[str, ...] = ()
    """Whose versions are asked for."""
    marks: dict[str, str] = Field(default_factory=dict)
    """Files that the driver has written for a moment, by the folder that all machines should share."""


class Answer(Strict):
    """What a machine says; errors are in words for a person, None where all is well."""

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    """Names of its GPUs, as torch has them."""
    versions: dict[str, str]
    """Of Python and of the packages that vitrail needs; those that it lacks are missing here too."""
    data_error: str | None = None
    data_fingerprint: str | None = None
    tracking_error: str | None = None
    tracking_refused: bool = False
    """Whether MLflow answers, but wants other credentials."""
    weights_error: str | None = None
    checkpoints_error: str | None = None
    unshared: tuple[str, ...] = ()
    """Folders in which the driver's mark is not."""
    cache: str
    cache_free_bytes: int
    """On the disk of `VITRAIL_CACHE`, over which checkpoints and shards of an object store go."""


class MachineFacts(Strict):
    """A machine that is alive."""

    name: str
    head: bool
    """Whether drivers run here."""
    type: str | None
    """Of the launcher's file."""
    resources: dict[str, float]
    answer: Answer | None
    """None where it did not answer in time, or was not asked."""
    asked: bool = True
    """False for those that are too many to be asked."""


class RunFacts(Strict):
    """A training run as it would begin."""

    config: RunConfig
    images: dict[str, int]
    """Of each split."""
    data_bytes: int
    """Of all shards."""
    name_error: str | None = None
    """Why its folder or its checkpoints cannot be this run's."""
    done_steps: int = 0
    """Of its newest checkpoint."""
    kept: int = 0
    """Checkpoints that it has already."""
    free_bytes: int | None = None
    """Where checkpoints go; None in an object store."""
    earlier: tuple[EarlierRun, ...] = ()


class SweepFacts(Strict):
    """A sweep as it would begin."""

    config: dict[str, Any]
    """A `SweepConfig`, whose module needs torch."""
    at_once: int
    """Trials that run at a time."""
    images: dict[str, int]
    name_error: str | None = None
    earlier: dict[str, tuple[EarlierRun, ...]] = Field(default_factory=dict)
    """By the configuration's label."""


class Asked(Strict):
    """The numbers of the command, which are known also where the plan is refused."""

    workers: int
    least: int
    """Of them, with how many it begins."""
    gpus_per_worker: float


class Facts(Strict):
    """All that the probe found."""

    cluster: str | None
    """Name that the launcher's file gives the cluster."""
    machines: tuple[MachineFacts, ...]
    types: tuple[NodeType, ...]
    """What may be started, where the head knows of a launcher's file."""
    available: dict[str, float]
    """CPUs and GPUs that nobody uses now."""
    asked: Asked | None = None
    """None for a script whose arguments are not those of a training run or a sweep."""
    question: Question = Question()
    refusal: str | None = None
    """Why the plan cannot be made."""
    run: RunFacts | None = None
    sweep: SweepFacts | None = None
