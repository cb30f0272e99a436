"""How the same tensors are called here and in mmsegmentation.

Ours: timm's names inside `backbone.`; neck and heads are spelled alike in both. mmsegmentation named the LayerNorms
of a block `norm1`/`norm2` up to 0.14, and `ln1`/`ln2` since.
"""

import re

_TO_MMSEG = (
    (r"^backbone\.norm\.", "backbone.ln1."),
    (r"^backbone\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.blocks\.(\d+)\.norm([12])\.", r"backbone.layers.\1.ln\2."),
    (r"^backbone\.blocks\.(\d+)\.attn\.qkv\.", r"backbone.layers.\1.attn.attn.in_proj_"),
    (r"^backbone\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attn.attn.out_proj."),
    (r"^backbone\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
    (r"^backbone\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
)


def to_mmseg(name: str) -> str:
    """mmsegmentation's name (0.15 to 1.2) of one of our parameters or buffers."""
    for pattern, replacement in _TO_MMSEG:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name
