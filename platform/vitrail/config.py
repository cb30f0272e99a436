"""What a run is: frozen, strict pydantic models that print as JSON; `overrides.py` changes them from the command line.

A `Recipe` holds all that decides the result of training but the data and the seed; nothing in it names a machine.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vitrail.schedules import PolySchedule, Schedule
from vitrail.strict import Fraction, Strict

IGNORE_INDEX = 255
"""Label of pixels that count in neither loss nor metric."""

MIN_COVERAGE = 0.99
"""Share of the backbone's parameters, by element count, that pretrained weights must cover."""

Ingest = Literal["worker", "ray-data"]
"""Who decodes and augments: threads of each worker, or Ray Data's tasks on any machine. The batches are the same."""
IngestChoice = Literal["auto", "worker", "ray-data"]
"""`auto` is Ray Data where machines without a GPU stand beside those with one."""


class BackboneConfig(Strict):
    """A plain ViT. Defaults are those of every published row but for width, heads and final norm."""

    embed_dim: PositiveInt
    num_heads: PositiveInt
    depth: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    img_size: PositiveInt = 512
    patch_size: PositiveInt = 16
    out_indices: tuple[int, int, int, int] = (2, 5, 8, 11)
    final_norm: bool = False
    """LayerNorm on the last of the four outputs (the "LN" of the published names)."""
    drop_path_rate: Fraction = 0.1
    drop_path_attn: bool = True
    """Stochastic depth on the attention branch too: mmsegmentation up to 0.23, which trained the published models."""
    patch_bias: bool = True
    """Bias of the patch embedding: mmsegmentation up to 1.1; 1.2 leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be divisible by num_heads={self.num_heads}")
        if max(self.out_indices) >= self.depth:
            raise ValueError(f"out_indices={self.out_indices} must be below depth={self.depth}")
        return self


class MultiLevelNeckConfig(Strict):
    """1x1 and 3x3 convolutions around a resize of each level by `scales` (the "MLN" of the published names)."""

    scales: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)


class UPerHeadConfig(Strict):
    """Pyramid pooling and a feature pyramid over four levels (Xiao et al. 2018)."""

    channels: PositiveInt = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    dropout_ratio: Fraction = 0.1


class FCNHeadConfig(Strict):
    """One convolution on one level, for an auxiliary loss in training."""

    channels: PositiveInt = 256
    in_index: int = 3
    dropout_ratio: Fraction = 0.1
    loss_weight: float = 0.4


class ModelConfig(Strict):
    """Backbone, neck and heads of a segmentor."""

    backbone: BackboneConfig
    neck: MultiLevelNeckConfig | None = None
    decode_head: UPerHeadConfig = UPerHeadConfig()
    auxiliary_head: FCNHeadConfig = FCNHeadConfig()
    num_classes: PositiveInt = 150


class OptimizerConfig(Strict):
    """AdamW; the learning rate belongs to the schedule."""

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    no_decay: tuple[str, ...] = ("pos_embed", "cls_token")
    """Parameters whose name contains one of these are not decayed. mmsegmentation also names "norm", which has matched
    no parameter since 0.15: LayerNorm and BatchNorm weights, and all biases, are decayed."""
    max_grad_norm: PositiveFloat | None = None
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate from each transformer block to the one before it (Clark et al. 2020, BEiT); 1: all
    parts of the model learn at the same rate, as published."""


class TransformConfig(Strict):
    """Resize, crop and distortion in training; at test time the resize alone. Defaults are ADE20K's as published."""

    scale: tuple[PositiveInt, PositiveInt] = (2048, 512)
    """Bounds on the long and the short side that an image is scaled to, its aspect ratio kept."""
    ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    crop_size: PositiveInt = 512
    cat_max_ratio: Fraction = 0.75
    """A crop is drawn again (10 times at most) while one class fills this share of its labelled pixels."""
    flip_prob: Fraction = 0.5
    photometric: bool = True


class WholeInferenceConfig(Strict):
    """The network sees the whole resized image at once."""

    kind: Literal["whole"] = "whole"


class SlideInferenceConfig(Strict):
    """The network sees overlapping windows, whose logits are averaged."""

    kind: Literal["slide"] = "slide"
    crop_size: PositiveInt = 512
    stride: PositiveInt = 341


class MsFlipConfig(Strict):
    """Softmax averaged over scales, each as it is and mirrored. Defaults are those of the published ms+flip column."""

    ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1)
    flip: bool = True
    relative_to: Literal["test_scale", "image"] = "test_scale"
    """What the ratios multiply: `transforms.scale` (mmsegmentation 0.x `MultiScaleFlipAug`, which made the published
    numbers) or the image's own size (1.x `tta_pipeline` with `scale_factor`)."""


Inference = Annotated[WholeInferenceConfig | SlideInferenceConfig, Field(discriminator="kind")]


class Published(Strict):
    """A row of mmsegmentation's `configs/vit` table: 8 V100 for training, one V100 in float32 for memory and speed."""

    miou: float
    miou_ms_flip: float
    memory_gb: float
    fps: float


class Recipe(Strict):
    """How a model is built, trained and tested."""

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = PolySchedule()
    transforms: TransformConfig = TransformConfig()
    inference: Inference = WholeInferenceConfig()
    ms_flip: MsFlipConfig = MsFlipConfig()
    """What `--ms-flip` does at evaluation."""
    total_steps: PositiveInt
    global_batch: PositiveInt = 16
    val_interval: PositiveInt
    """Steps from one validation (and checkpoint) to the next; the last step is always validated."""
    pretrained: str | None = None
    """timm's name of the weights that the backbone starts from."""
    published: Published | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule.warmup_steps >= self.total_steps:
            raise ValueError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} must be below total_steps={self.total_steps}"
            )
        return self

    def with_classes(self, num_classes: int) -> Self:
        """The same recipe for a data set of `num_classes` classes."""
        return self.model_copy(update={"model": self.model.model_copy(update={"num_classes": num_classes})})


Precision = Literal["auto", "fp32", "bf16"]


class ComputeConfig(Strict):
    """How a step is computed. But for rounding, none of it changes what is computed."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products and convolutions in bfloat16; weights, batch norm's statistics and losses stay float32."""
    compile: bool = False
    """Whether torch.compile fuses the network's kernels, which takes minutes at the start."""
    checkpoint_activations: bool = False
    """Whether transformer blocks and neck are computed again in the backward pass instead of being kept for it."""
    micro_batch: PositiveInt | Literal["auto"] | None = None
    """Samples of a worker that go through the network at once; None: all of its share of the batch; "auto": as many as
    fit into the GPU's memory. Where it is not all, batch norm's statistics are over the micro-batches of all workers,
    not over the global batch."""


class TrackingConfig(Strict):
    """Where a run is recorded in MLflow."""

    uri: str
    experiment: str = "vitrail"
    parent_run_key: str | None = None
    source: str = "vitrail"
    """The script that the user ran."""


class RunConfig(Strict):
    """One training run: the recipe, what it is trained on, and the workers that do it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.\-]*$")]
    recipe: Recipe
    data: str
    """Absolute path or URI of a prepared data set."""
    data_fingerprint: str
    folder: str
    """Absolute path of the run's own folder, reachable from every worker."""
    checkpoint_root: str | None = None
    """Absolute path or URI of the folder of checkpoints; None: `checkpoints` in the run's folder."""
    seed: int = 0
    workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: float = 0.0
    ingest: Ingest = "worker"
    decode_threads: int = Field(default=1, ge=0)
    decode_processes: int = Field(default=0, ge=0)
    """Of each worker, where it decodes itself."""
    max_failures: int = Field(default=0, ge=-1)
    """How often the workers are restarted from the last checkpoint after a failure; -1 for ever."""
    min_workers: PositiveInt | None = None
    """Goes on with so many while the cluster has no room for `workers`; None: waits for all of them."""
    compute: ComputeConfig = ComputeConfig()
    keep_newest: PositiveInt = 2
    keep_best: PositiveInt = 1
    """Checkpoints that are kept; the others are deleted."""
    save_interval_s: PositiveFloat = 900.0
    """A checkpoint is due when this long has passed since the last, also between validations."""
    resize_interval_s: PositiveFloat = 60.0
    """How often it is asked whether the cluster has room for more workers, where their number may vary."""
    max_skipped_steps: int = Field(default=0, ge=0)
    """Steps with a NaN or infinite loss or gradient that are passed over; one more stops the run."""
    validate_beside: bool = False
    """Whether validations between the first and the last are left to a task beside the workers, with as many CPUs and
    GPUs as one of them, while they train on."""
    stall_timeout_s: PositiveFloat = 600.0
    """A worker that makes no step for so long is taken to hang, named with its stack, and ended."""
    tracking: TrackingConfig | None = None

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued: all that decides the outcome, and no machine."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data_fingerprint": self.data_fingerprint,
            "seed": self.seed,
            **({} if self.compute.precision == "fp32" else {"precision": self.compute.precision}),
        }

    @property
    def checkpoints(self) -> str:
        """Absolute path or URI of the folder of checkpoints."""
        return self.checkpoint_root or f"{self.folder}/checkpoints"

    @property
    def run_key(self) -> str:
        """Name of the run in MLflow's tags: the same across restarts."""
        digest = hashlib.sha256(json.dumps([self.folder, self.identity()], sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"
