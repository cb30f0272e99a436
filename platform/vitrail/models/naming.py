"""How the same tensors are called here and in mmsegmentation.

Ours: timm's names inside `backbone.`; neck and heads are spelled alike in both. mmsegmentation's backbone has used
`layers.N.ln1` since 0.15; before, its LayerNorms were `norm1`/`norm2`, in a ViT that otherwise had timm's names.
"""

import re
from typing import Literal

ExportFormat = Literal["mmseg", "timm", "safetensors"]
"""Whose names exported weights get; `safetensors` keeps ours."""

_TO_MMSEG = (
    (r"^backbone\.norm\.", "backbone.ln1."),
    (r"^backbone\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.blocks\.(\d+)\.norm([12])\.", r"backbone.layers.\1.ln\2."),
    (r"^backbone\.blocks\.(\d+)\.attn\.qkv\.", r"backbone.layers.\1.attn.attn.in_proj_"),
    (r"^backbone\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attn.attn.out_proj."),
    (r"^backbone\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
    (r"^backbone\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
)
_FROM_MMSEG = (
    (r"^backbone\.(?:ln|norm)1\.", "backbone.norm."),
    (r"^backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.layers\.(\d+)\.(?:ln|norm)([12])\.", r"backbone.blocks.\1.norm\2."),
    (r"^backbone\.layers\.(\d+)\.attn\.attn\.in_proj_", r"backbone.blocks.\1.attn.qkv."),
    (r"^backbone\.layers\.(\d+)\.attn\.attn\.out_proj\.", r"backbone.blocks.\1.attn.proj."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"backbone.blocks.\1.mlp.fc2."),
)


def to_mmseg(name: str) -> str:
    """mmsegmentation's name (0.15 to 1.2) of one of our parameters or buffers."""
    return _renamed(name, _TO_MMSEG)


def from_mmseg(name: str) -> str:
    """Our name of a parameter or buffer of any mmsegmentation; our own names stay as they are."""
    return _renamed(name, _FROM_MMSEG)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name
