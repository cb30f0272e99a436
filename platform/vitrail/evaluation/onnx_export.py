"""A trained model as an ONNX file: from uint8 images of any size to label maps, compared with the model itself.

segmentor, described = open_model(Path("runs/camvid/checkpoints/step_001000"))
export_onnx(segmentor, described, Path("camvid.onnx"))

    image   uint8 (N, 3, H, W), RGB, resized to the test scale by the caller
    labels  uint8 (N, H, W), train ids
    logits  float32 (N, K, h, w), not upsampled: to be resized to (H, W), and from there to the original's size

Normalisation, padding, the position embedding's resize and upsampling are inside. What the labels mean, and how the
model is tested, is in the file's `metadata_props`, as JSON under `vitrail.…`.
"""

import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitrail import __version__
from vitrail.checkpoint import file_sha256
from vitrail.config import Recipe, SlideInferenceConfig
from vitrail.data.geometry import scaled_size
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.inference import resized_argmax
from vitrail.evaluation.trained import TrainedModel
from vitrail.models.layers import resize
from vitrail.models.normalize import MEAN_RGB, STD_RGB, normalize
from vitrail.models.segmentor import Segmentor
from vitrail.models.weight_files import writing_aside

BatchSize = tuple[int, int, int]
"""(images, height, width)"""

_REQUIRED = ("onnx", "onnxruntime", "onnxscript")
_MAX_BYTES = 2**31 - 2**24
"""What protobuf allows a file, with room for the graph."""
_TRACED_SIZE = (2, 3, 150, 211)
"""Any will do, but none that a rule could fit by chance: no equal sides, no multiples of a patch, no batch of 1."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near the file's outputs are to the model's for one batch of made-up images."""

    what: str
    size: BatchSize
    deviation: float
    """The largest of a logit, as a share of the range of the logits; NaN where one of them is."""
    equal_labels: float
    """As a share of the pixels."""
    label_gap: float
    """How far the logit of a wrong label is below the best one's, at most and as the same share; 0 without any."""

    def within(self, tolerance: float) -> bool:
        """Whether logits agree, and labels wherever the model itself is decided."""
        return self.deviation <= tolerance and self.label_gap <= tolerance


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second on this machine's CPU, one image at a time."""

    height: int
    width: int
    onnxruntime: float
    torch: float


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compares with the model."""

    size_bytes: int
    agreements: tuple[Agreement, ...]
    speed: Speed


class OnnxMismatchError(VitrailError):
    """An exported graph whose outputs are not the model's."""

    def __init__(self, file: str, worst: Agreement, tolerance: float) -> None:
        super().__init__(file, worst, tolerance)
        self.file, self.worst, self.tolerance = file, worst, tolerance

    def __str__(self) -> str:
        worst, size = self.worst, " x ".join(map(str, self.worst.size))
        return (
            f"{self.file} was not written: at {size} ({worst.what}) the exported graph is off by {worst.deviation:.1e} "
            f"of the logits' range, where {self.tolerance:.0e} is allowed, {worst.equal_labels:.2%} of the labels are "
            f"equal, and wrong ones are up to {worst.label_gap:.1e} below the best"
        )


class Graph(nn.Module):
    """What the file computes: `(N, 3, H, W)` uint8 -> labels `(N, H, W)` uint8 and logits `(N, K, h, w)`."""

    mean: Tensor
    std: Tensor

    def __init__(self, segmentor: Segmentor) -> None:
        super().__init__()
        self.segmentor = segmentor
        # Not `normalize`, which keeps its tensors: those of a trace are of no use afterwards.
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD_RGB).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.segmentor((image.float() - self.mean) / self.std)
        return resize(logits, image.shape[-2:]).argmax(dim=1).to(torch.uint8), logits


def export_onnx(segmentor: Segmentor, described: TrainedModel, out: Path, *, tolerance: float = 1e-3) -> Exported:
    """Write the model, on the CPU and in eval mode, to `out`; a file that exists has passed the comparison.

    `tolerance` is the largest deviation of a logit from the model's own, as a share of the range of the logits.

    Of a recipe that is tested in sliding windows, the graph is the network of one window.

    Raises:
        UsageError: the extra `onnx` is not installed, the model does not fit into such a file, `out` cannot be written.
        OnnxMismatchError: the graph does not compute what the model does; nothing is written.
    """
    _require_onnx()
    _check_fits(segmentor)
    with writing_aside(out) as file:
        write_graph(segmentor, file, metadata=_metadata(described))
        agreements = compare(file, segmentor, check_sizes(described.recipe))
        worst = max(agreements, key=_badness)
        if not worst.within(tolerance):
            raise OnnxMismatchError(str(out), worst, tolerance)
        speed = _measure(file, segmentor, _photograph(described.recipe))
        return Exported(size_bytes=file.stat().st_size, agreements=agreements, speed=speed)


def write_graph(segmentor: Segmentor, file: Path, *, metadata: dict[str, str]) -> None:
    """Trace the model for any N, H and W, and write it with its weights inside the file."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            Graph(segmentor).eval(),
            (torch.zeros(_TRACED_SIZE, dtype=torch.uint8),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["labels", "logits"],
            dynamic_shapes=({0: "N", 2: "H", 3: "W"},),
        )
        assert program is not None
        program.model.metadata_props.update(metadata)
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # lines of this program and where they lie on this machine
        program.save(file, external_data=False)


def compare(file: Path, segmentor: Segmentor, sizes: dict[str, BatchSize]) -> tuple[Agreement, ...]:
    """Run onnxruntime and the model on the same images of each size; what the sizes stand for are the keys."""
    run = _onnxruntime(file)
    return tuple(_compare(run, segmentor, what, size) for what, size in sizes.items())


def check_sizes(recipe: Recipe) -> dict[str, BatchSize]:
    """Sizes at which an exported graph could go wrong, each in its own way."""
    crop, backbone = recipe.transforms.crop_size, recipe.model.backbone
    sizes = {
        "training crop": (1, crop, crop),
        "4:3 photograph": (1, *_photograph(recipe)),
        "tall": (1, crop * 3 // 2, crop * 3 // 4),
        "odd": (1, crop * 5 // 8 + 3, crop * 7 // 8 + 5),
        "two images": (2, crop * 3 // 4, crop * 5 // 8),
    }
    if backbone.img_size // backbone.patch_size % 2 == 0:
        # The position embedding is then taken as it is, though it was made for a square.
        sizes["wide, tokens of a square"] = (1, backbone.img_size // 2, backbone.img_size * 2)
    return sizes


def _photograph(recipe: Recipe) -> tuple[int, int]:
    """Height and width at which a photograph of 4:3 is tested."""
    return scaled_size((480, 640), recipe.transforms.scale)


def _metadata(described: TrainedModel) -> dict[str, str]:
    recipe = described.recipe
    sliding = isinstance(recipe.inference, SlideInferenceConfig)
    values = {
        "version": __version__,
        "graph": "one window of `inference`" if sliding else "whole image",
        "recipe": recipe.name,
        "classes": described.classes,
        "palette": described.palette,
        "reduce_zero_label": described.reduce_zero_label,
        "scale": recipe.transforms.scale,
        "inference": recipe.inference.model_dump(mode="json"),
        "step": described.step,
        "weights_sha256": None if described.weights is None else file_sha256(described.weights),
        "data_fingerprint": described.data_fingerprint,
    }
    return {f"vitrail.{key}": json.dumps(value) for key, value in values.items()}


def _compare(run: "Run", segmentor: Segmentor, what: str, size: BatchSize) -> Agreement:
    image = _made_up_images(size)
    labels, logits = run(image)
    expected_labels, expected = _by_torch(segmentor, image)
    if labels.shape != expected_labels.shape or logits.shape != expected.shape:
        return Agreement(what=what, size=size, deviation=float("nan"), equal_labels=0.0, label_gap=float("nan"))
    spread = expected.max() - expected.min()
    wrong = labels != expected_labels
    gap = torch.zeros(())
    if wrong.any():
        scores = resize(expected, image.shape[-2:])
        gap = (scores.amax(dim=1) - scores.gather(1, labels[:, None]).squeeze(1))[wrong].max()
    return Agreement(
        what=what,
        size=size,
        deviation=float((logits - expected).abs().max() / spread),
        equal_labels=1 - float(wrong.double().mean()),
        label_gap=float(gap / spread),
    )


def _badness(agreement: Agreement) -> float:
    worst = max(agreement.deviation, agreement.label_gap)
    return worst if worst == worst else float("inf")


def _made_up_images(size: BatchSize) -> Tensor:
    """uint8 `(N, 3, H, W)`: coarse patches of any colour under fine noise, the same ones at every call."""
    images, height, width = size
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.rand((images, 3, 5, 7), generator=generator), size=(height, width), mode="bilinear")
    fine = torch.rand((images, 3, height, width), generator=generator)
    return ((0.7 * coarse + 0.3 * fine) * 255).round().to(torch.uint8)


Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 images -> int64 labels and logits"""


def _onnxruntime(file: Path) -> Run:
    """The file on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        labels, logits = session.run(["labels", "logits"], {"image": image.numpy()})
        return torch.from_numpy(labels).long(), torch.from_numpy(logits)

    return run


@torch.inference_mode()
def _by_torch(segmentor: Segmentor, image: Tensor) -> tuple[Tensor, Tensor]:
    """What `Predictor` computes for an original of the same size."""
    logits = segmentor(normalize(image))
    return resized_argmax(logits, [(image.shape[2], image.shape[3])]), logits


def _measure(file: Path, segmentor: Segmentor, size: tuple[int, int]) -> Speed:
    image, run = _made_up_images((1, *size)), _onnxruntime(file)
    return Speed(
        height=size[0],
        width=size[1],
        onnxruntime=1 / _shortest_time_s(lambda: run(image)),
        torch=1 / _shortest_time_s(lambda: _by_torch(segmentor, image)),
    )


def _shortest_time_s(call: Callable[[], Any], *, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _require_onnx() -> None:
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is not installed; the extra `onnx` brings it: `uv sync --extra onnx`, or "
            "`pip install 'vitrail[onnx]'`"
        )


def _check_fits(segmentor: Segmentor) -> None:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in segmentor.state_dict().values())
    if size_bytes > _MAX_BYTES:
        raise UsageError(f"the model has {size_bytes / 1e9:.1f} GB of weights; one ONNX file holds 2 GB at most")
    if segmentor.config.num_classes > 256:
        raise UsageError(f"labels are uint8, which cannot hold {segmentor.config.num_classes} classes")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's and onnxscript's remarks on how they trace and rewrite; errors are raised all the same."""
    names: Sequence[str] = ("torch", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
