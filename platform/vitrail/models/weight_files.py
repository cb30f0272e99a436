"""Reading and writing files of tensors, without running code that a file brings along.

Known by their content, not their suffix: torch's own format (zip, or the older one that published checkpoints use),
safetensors, and the `.npz` of JAX ViTs.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitrail.errors import UsageError

# What training frameworks keep beside the weights: logs, counters, arguments. None of it is built, nor imported.
_BYSTANDERS = re.compile(r"^(mmengine|mmcv|mmseg|numpy)\.|^(_codecs\.encode|argparse\.Namespace|collections\.deque)$")


class WeightFileError(UsageError):
    """A file of weights that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class WeightFile:
    """Tensors by the names that the file gives them."""

    tensors: dict[str, Tensor]
    kind: Literal["torch", "safetensors", "npz"]
    entry: str = ""
    """Of a torch checkpoint, the entry that held them: `state_dict`, `model`, or nothing."""
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensors(path: Path) -> WeightFile:
    """The tensors of a file, on the CPU.

    Raises:
        WeightFileError: there is no such file, it is damaged, or it would have to run code.
    """
    if not path.is_file():
        raise WeightFileError(str(path), "there is no such file")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path) and any(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist()):
            return _read_jax(path)
        return _read_torch(path)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(str(path), f"not a readable file of weights ({type(error).__name__}: {error})") from error


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write tensors so that a file that exists is complete."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing_aside(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def write_torch(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a torch checkpoint so that a file that exists is complete."""
    with writing_aside(path) as temporary:
        torch.save(checkpoint, temporary)


def _read_safetensors(path: Path) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return WeightFile(tensors, "safetensors", metadata=file.metadata() or {})


def _read_torch(path: Path) -> WeightFile:
    with torch.serialization.safe_globals(_placeholders(path)):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).splitlines()[-1] if "GLOBAL" not in str(error) else _global_named_in(error)
            raise WeightFileError(
                str(path), f"only tensors are read from a pickle, and this one has more: {reason}"
            ) from error
    entry = ""
    for name in ("state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            entry, checkpoint = name, checkpoint[name]
            break
    if not isinstance(checkpoint, Mapping):
        raise WeightFileError(str(path), f"holds a {type(checkpoint).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightFileError(str(path), f"holds no tensors by name; its entries are {', '.join(map(str, checkpoint))}")
    return WeightFile(tensors, "torch", entry=entry)


def _read_jax(path: Path) -> WeightFile:
    """A Flax ViT, by timm's own reader, as timm names its tensors."""
    with np.load(path, allow_pickle=False) as file:
        shapes = {name: file[name].shape for name in file.files}
    kernel = _shape(path, shapes, "embedding/kernel")  # (patch, patch, 3, D)
    positions = _shape(path, shapes, "pos_embedding")  # (1, 1 + grid * grid, D)
    query = _shape(path, shapes, "query/kernel")  # (D, heads, D / heads)
    hidden = _shape(path, shapes, "Dense_0/kernel")  # (D, hidden)
    head = next((shape for name, shape in shapes.items() if re.search(r"(^|/)head/kernel$", name)), (0, 0))
    blocks = {found[1] for name in shapes if (found := re.search(r"encoderblock_(\d+)/", name))}
    vit = VisionTransformer(
        img_size=round((positions[1] - 1) ** 0.5) * kernel[0],
        patch_size=kernel[0],
        embed_dim=kernel[-1],
        depth=len(blocks),
        num_heads=query[1],
        mlp_ratio=hidden[1] / kernel[-1],
        num_classes=head[1],
    )
    vit.load_pretrained(str(path))
    return WeightFile(dict(vit.state_dict()), "npz")


def _shape(path: Path, shapes: dict[str, tuple[int, ...]], ending: str) -> tuple[int, ...]:
    found = next((shape for name, shape in shapes.items() if name.endswith(ending)), None)
    if found is None:
        raise WeightFileError(
            str(path), f"an .npz without {ending} is not a JAX ViT; it has {', '.join(list(shapes)[:4])}"
        )
    return found


def _placeholders(path: Path) -> list[Any]:
    """Classes that do nothing, for what known frameworks pickle beside the weights."""
    if not zipfile.is_zipfile(path):  # torch can list the names of the newer format alone
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    return [(type("Placeholder", (_Placeholder,), {}), name) for name in names if _BYSTANDERS.match(name)]


class _Placeholder:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _global_named_in(error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else "an unknown object"


@contextmanager
def writing_aside(path: Path) -> Iterator[Path]:
    """Another name in the same folder, which becomes `path` when the block has ended well, and else is deleted."""
    if not path.parent.is_dir():
        raise WeightFileError(str(path), f"there is no folder {path.parent} to write into")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise WeightFileError(str(path), f"cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
