"""What a run is: frozen, strict pydantic models that print as JSON and take overrides from the command line.

    recipe = override(get_recipe("upernet_vit-nano_mln_128x128_1k"), ["schedule.peak_lr=1e-3", "total_steps=400"])

A `Recipe` holds all that decides the result of training but the data and the seed; nothing in it names a machine.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from vitrail.errors import UnknownNameError, UsageError

IGNORE_INDEX = 255
"""Label of pixels that count in neither loss nor metric."""

MIN_COVERAGE = 0.99
"""Share of the backbone's parameters, by element count, that pretrained weights must cover."""

Ingest = Literal["worker", "ray-data"]
"""Who decodes and augments: threads of each worker, or Ray Data's tasks on any machine. The batches are the same."""
IngestChoice = Literal["auto", "worker", "ray-data"]
"""`auto` is Ray Data where machines without a GPU stand beside those with one."""

T = TypeVar("T", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """A frozen configuration that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """16 hexadecimal digits that change with any field."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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


class Warmup(Strict):
    """What all schedules share."""

    peak_lr: PositiveFloat = 6e-5
    warmup_steps: int = Field(default=1500, ge=0)
    warmup_ratio: PositiveFloat = 1e-6


class PolySchedule(Warmup):
    """mmsegmentation 0.x's `poly` with linear warm-up: decay from step 0, times a ramp; made the published numbers."""

    kind: Literal["poly"] = "poly"
    power: PositiveFloat = 1.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0 (mmcv 1.7 `PolyLrUpdaterHook`)."""
        decayed = self.peak_lr * math.pow(1 - step / total_steps, self.power)
        if step >= self.warmup_steps:
            return decayed
        return decayed * (1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio))


class LinearPolySchedule(Warmup):
    """mmsegmentation 1.x's `LinearLR` then `PolyLR`: reaches the peak at the end of warm-up and 0 at the last step."""

    kind: Literal["linear_poly"] = "linear_poly"
    power: PositiveFloat = 1.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0 (mmengine 0.10 schedulers in closed form)."""
        if step < self.warmup_steps:
            share = step / (self.warmup_steps - 1) if self.warmup_steps > 1 else 1.0
            return self.peak_lr * (self.warmup_ratio + (1 - self.warmup_ratio) * share)
        decay_steps = max(1, total_steps - self.warmup_steps - 1)
        steps_left = max(0, decay_steps - (step - self.warmup_steps))
        # Whole numbers are subtracted, then divided, which keeps all digits near the end.
        return self.peak_lr * math.pow(steps_left / decay_steps, self.power)


class CosineSchedule(Warmup):
    """Linear warm-up, then half a cosine down to `min_lr` (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    min_lr: float = 0.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0."""
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return self.peak_lr * (self.warmup_ratio + (1 - self.warmup_ratio) * share)
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class ConstantSchedule(Warmup):
    """Linear warm-up, a plateau, and a linear decay to 0 over the last `decay_share` of the steps."""

    kind: Literal["constant"] = "constant"
    decay_share: Fraction = 0.2

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0."""
        ramp = 1.0
        if step < self.warmup_steps:
            ramp = self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup_steps
        decay_steps = self.decay_share * total_steps
        left = (total_steps - step) / decay_steps if decay_steps else 1.0
        return self.peak_lr * min(ramp, left, 1.0)


Schedule = Annotated[PolySchedule | LinearPolySchedule | CosineSchedule | ConstantSchedule, Field(discriminator="kind")]


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


def choose_compute(precision: Precision, *, gpus: bool, micro_batch: str | None = None, **flags: bool) -> ComputeConfig:
    """What a command line asks for: "auto" precision is bf16 on GPUs and fp32 on CPUs.

    Raises:
        UsageError: a micro-batch that is neither a number of samples nor "auto".
    """
    if precision == "auto":
        precision = "bf16" if gpus else "fp32"
    return validated(
        ComputeConfig, {"precision": precision, "micro_batch": micro_batch and _parse(micro_batch), **flags}
    )


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


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """A recipe with `path.to.field=value` applied; values are JSON, or plain text where that fails.

    Raises:
        UsageError: not an assignment, a field that does not exist, or a value that the field refuses.
    """
    values = recipe.model_dump()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r} is not of the form path.to.field=value")
        _assign(values, path.strip(), _parse(text.strip()))
        if path.strip().endswith(".kind"):
            values = validated(Recipe, values).model_dump()  # the new variant's own fields, for what follows
    return validated(Recipe, values)


def validated(cls: type[T], values: Any) -> T:
    """An instance of `cls`, or a `UsageError` with one line per field at fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or cls.__name__}: {e['msg']}" for e in error.errors()]
        raise UsageError("; ".join(lines)) from None


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node = values
    for name in parents:
        node = _member(node, name, path)
    current = _member(node, leaf, path)
    if leaf == "kind" and value != current:
        # Another variant has other fields: keep those that all variants of a schedule share, drop the rest.
        shared = {key: node[key] for key in Warmup.model_fields if key in node}
        node.clear()
        node.update(shared)
    node[leaf] = value


def _member(node: Any, name: str, path: str) -> Any:
    known = node if isinstance(node, dict) else {}
    if name not in known:
        kind = "field" if name == path else f"part of {path!r}:"
        raise UnknownNameError(kind, name, known)
    return known[name]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
