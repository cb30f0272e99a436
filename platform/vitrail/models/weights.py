"""Weights in and out: from and to mmsegmentation, timm and safetensors, with an account of what was covered.

    coverage = load_into(model, Path("upernet_deit-s16_mln_512x512_160k_ade20k.pth"))
    export_weights(model, Path("model.pth"), format="mmseg")

Nothing is dropped silently: a `Coverage` names every tensor that was missing, unexpected, resized or left out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.checkpoint import file_sha256
from vitrail.config import MIN_COVERAGE
from vitrail.errors import UsageError
from vitrail.models.architecture import grid_side, is_segmentor
from vitrail.models.hub import download
from vitrail.models.naming import ExportFormat, from_mmseg, to_mmseg
from vitrail.models.segmentor import Segmentor
from vitrail.models.vit import resize_pos_embed
from vitrail.models.weight_files import WeightFile, WeightFileError, read_tensors, write_safetensors, write_torch

Format = Literal["mmsegmentation", "mmsegmentation backbone", "timm", "deit", "jax", "vitrail"]

_POS_EMBED, _PATCH_BIAS = "backbone.pos_embed", "backbone.patch_embed.proj.bias"
_IMAGENET_HEAD = ("backbone.head.", "backbone.head_dist.", "backbone.pre_logits.", "backbone.fc_norm.")
_CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a file of weights gave to a model. Shares are of parameters, by element count."""

    source: str
    format: str
    sha256: str | None
    backbone: float
    model: float
    pos_embed_from: tuple[int, int] | None
    pos_embed_to: tuple[int, int] | None
    """Grids of the position embedding, where it was resized."""
    missing: tuple[str, ...]
    """Tensors of the model that the file has not; `neck.*` for a part that is missing whole."""
    unexpected: tuple[str, ...]
    """Tensors of the file that the model has not."""
    dropped: tuple[str, ...]
    """Classifiers of the file, left out because the model's classes are others."""
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """All of it, for a person."""
        resized = "not resized"
        if self.pos_embed_from and self.pos_embed_to:
            before, after = ("x".join(map(str, grid)) for grid in (self.pos_embed_from, self.pos_embed_to))
            resized = f"resized from {before} to {after}"
        return [
            f"source: {self.source} ({self.format})",
            f"sha256: {self.sha256}",
            f"covered: {self.backbone:.2%} of the backbone's parameters, {self.model:.2%} of the model's",
            f"position embedding: {resized}",
            f"missing: {', '.join(self.missing) or 'nothing'}",
            f"unexpected: {', '.join(self.unexpected) or 'nothing'}",
            f"dropped: {', '.join(self.dropped) or 'nothing'}",
            *(f"note: {note}" for note in self.notes),
        ]


class CoverageError(UsageError):
    """A file that covers too little of the backbone."""

    def __init__(self, source: str, share: float, min_share: float, missing: tuple[str, ...]) -> None:
        super().__init__(source, share, min_share, missing)
        self.source, self.share, self.min_share, self.missing = source, share, min_share, missing

    def __str__(self) -> str:
        shown = ", ".join(self.missing[:8]) + (f" and {len(self.missing) - 8} more" if len(self.missing) > 8 else "")
        return (
            f"{self.source} covers {self.share:.2%} of the backbone's parameters, below {self.min_share:.2%}; "
            f"missing: {shown}. Choose the recipe that the weights belong to, or another file"
        )


def load_weights(path: Path) -> tuple[dict[str, Tensor], Format]:
    """The tensors of a file by our names, whole and unresized, and the format they came in.

    `path` is a file, or a checkpoint's folder.

    Raises:
        WeightFileError: unreadable, or not of a format known here.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    file = read_tensors(path)
    tensors = {_unwrapped(name): tensor for name, tensor in file.tensors.items()}
    known = _format(file, tensors)
    if known is None:
        raise WeightFileError(str(path), f"not the weights of a ViT; the first are {', '.join(list(tensors)[:4])}")
    if known in ("timm", "deit", "jax", "mmsegmentation backbone"):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return {from_mmseg(name): tensor for name, tensor in tensors.items()}, known


def load_into(model: Segmentor, path: Path, *, min_coverage: float = MIN_COVERAGE) -> Coverage:
    """Load what a file has for `model`, and say what that was.

    The position embedding is resized as mmsegmentation does; an ImageNet head is dropped, and so are the classifiers
    where the number of classes differs.

    Raises:
        CoverageError: less than `min_coverage` of the backbone's parameters are in the file.
        WeightFileError: the file is unreadable, or a tensor of it has another shape than the model's.
    """
    tensors, known = load_weights(path)
    target = path / "model.safetensors" if path.is_dir() else path
    return fit(model, tensors, source=str(path), format=known, sha256=file_sha256(target), min_coverage=min_coverage)


def load_pretrained(model: Segmentor, source: str, *, min_coverage: float = MIN_COVERAGE) -> Coverage:
    """Start `model` from a file, from timm's weights of a name, or (`none`) leave it as it is.

    Raises:
        UnknownNameError: neither a file nor a name that timm has weights for.
        PretrainedUnavailableError: timm's weights are not in the hub cache, and the hub is out of reach.
    """
    if source == "none":
        return fit(model, {}, source="none", format="random weights", sha256=None, min_coverage=0.0)
    if Path(source).exists():
        return load_into(model, Path(source), min_coverage=min_coverage)
    coverage = load_into(model, download(source), min_coverage=min_coverage)
    return Coverage(**{**vars(coverage), "source": source})


def export_weights(weights: Segmentor | Mapping[str, Tensor], path: Path, *, format: ExportFormat) -> None:
    """Write a model, or tensors by our names, in a format that others read.

    `mmseg`: a checkpoint for mmsegmentation 0.15 to 1.2, or a backbone alone for its `pretrained`; `timm`: the
    backbone's state dict, as safetensors where `path` ends so; `safetensors`: all, by our names.
    """
    tensors = weights.state_dict() if isinstance(weights, Segmentor) else weights
    if format == "safetensors":
        write_safetensors(tensors, path)
        return
    backbone = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    if format == "timm":
        write = write_safetensors if path.suffix == ".safetensors" else write_torch
        write(backbone, path)
    elif is_segmentor(tensors):
        write_torch({"meta": {}, "state_dict": {to_mmseg(name): tensor for name, tensor in tensors.items()}}, path)
    else:
        names = {name: to_mmseg(f"backbone.{name}").removeprefix("backbone.") for name in backbone}
        write_torch({names[name]: tensor for name, tensor in backbone.items()}, path)


def fit(
    model: Segmentor,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    format: str,
    sha256: str | None,
    min_coverage: float = MIN_COVERAGE,
) -> Coverage:
    """Load tensors by our names into `model`; see `load_into`."""
    state = model.state_dict()
    chosen = dict(tensors)
    dropped = [name for name in chosen if name.startswith(_IMAGENET_HEAD)]
    notes = []
    if is_segmentor(chosen):
        classes = len(chosen["decode_head.conv_seg.weight"])
        if classes != model.config.num_classes:
            dropped += [name for name in chosen if name.startswith(_CLASSIFIERS)]
            notes.append(
                f"{classes} classes in the file, {model.config.num_classes} in the model: classifiers start anew"
            )
    for name in dropped:
        del chosen[name]
    if _PATCH_BIAS in chosen and _PATCH_BIAS not in state:
        raise WeightFileError(source, "has a patch-embedding bias; set model.backbone.patch_bias=true to use it")

    pos_embed_from = pos_embed_to = None
    if _POS_EMBED in chosen and chosen[_POS_EMBED].shape[1:2] != state[_POS_EMBED].shape[1:2]:
        before, after = grid_side(chosen[_POS_EMBED]), grid_side(state[_POS_EMBED])
        chosen[_POS_EMBED] = resize_pos_embed(chosen[_POS_EMBED].float(), (after, after))
        pos_embed_from, pos_embed_to = (before, before), (after, after)

    missing = [name for name in state if name not in chosen]
    unexpected = tuple(name for name in chosen if name not in state)
    loaded = {name: tensor for name, tensor in chosen.items() if name in state}
    for name, tensor in loaded.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)} in the file and {tuple(state[name].shape)} in the model"
            raise WeightFileError(source, f"{name} is {shapes}: they are different architectures")
    share = _share(model, loaded, "backbone.")
    if share < min_coverage:
        raise CoverageError(source, share, min_coverage, tuple(n for n in missing if n.startswith("backbone.")))
    if _PATCH_BIAS in missing and tensors:
        loaded[_PATCH_BIAS] = torch.zeros_like(state[_PATCH_BIAS])
        notes.append("no patch-embedding bias in the file (mmsegmentation 1.2 has none by default): set to 0")
    model.load_state_dict(loaded, strict=False)
    return Coverage(
        source=source,
        format=format,
        sha256=sha256,
        backbone=share,
        model=_share(model, loaded, ""),
        pos_embed_from=pos_embed_from,
        pos_embed_to=pos_embed_to,
        missing=_by_part(missing, list(state)),
        unexpected=unexpected,
        dropped=tuple(dropped),
        notes=tuple(notes),
    )


def _format(file: WeightFile, tensors: Mapping[str, Tensor]) -> Format | None:
    """By the names of the tensors, and where they lay."""
    if any(name.startswith("backbone.") for name in tensors):
        return "vitrail" if file.kind == "safetensors" else "mmsegmentation"
    if "patch_embed.projection.weight" in tensors:
        return "mmsegmentation backbone"
    if "patch_embed.proj.weight" not in tensors:
        return None
    if file.kind == "npz":
        return "jax"
    return "deit" if file.entry == "model" else "timm"


def _unwrapped(name: str) -> str:
    """A name without what DistributedDataParallel and torch.compile put before it."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def _share(model: Segmentor, loaded: Mapping[str, Tensor], prefix: str) -> float:
    sizes = {name: p.numel() for name, p in model.named_parameters() if name.startswith(prefix)}
    return sum(size for name, size in sizes.items() if name in loaded) / sum(sizes.values())


def _by_part(missing: list[str], names: list[str]) -> tuple[str, ...]:
    """`part.*` for a part of the model that is missing whole, and single names for the rest."""
    there = {name.split(".")[0] for name in set(names) - set(missing)}
    whole = {name.split(".")[0] for name in missing} - there
    return tuple(dict.fromkeys(f"{n.split('.')[0]}.*" if n.split(".")[0] in whole else n for n in missing))
