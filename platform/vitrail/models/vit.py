"""The backbone: timm's ViT with mmsegmentation's way of feeding it and of reading it out.

Parameters keep timm's names. Source: mmsegmentation 1.2 `backbones/vit.py` (equal to 0.16 .. 0.30 in evaluation).
"""

import math
from functools import partial
from typing import Any

import timm.models.vision_transformer
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.config import BackboneConfig
from vitrail.models.layers import sizes_are_open


class VisionTransformer(timm.models.vision_transformer.VisionTransformer):
    """Four feature maps `(N, D, ceil(H / 16), ceil(W / 16))` of an image `(N, 3, H, W)`, from random weights."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(
            img_size=config.img_size,
            patch_size=config.patch_size,
            num_classes=0,
            global_pool="",
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            final_norm=config.final_norm,
            drop_path_rate=config.drop_path_rate,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",
        )
        self.config = config
        self.recompute = False
        """Whether the backward pass computes the blocks again instead of keeping what is inside them."""
        if not config.patch_bias:
            self.patch_embed.proj.register_parameter("bias", None)
        if not config.drop_path_attn:
            for block in self.blocks:
                block.drop_path1 = nn.Identity()
        _init_random(self)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """`(N, 3, H, W)` -> outputs after `out_indices`, all at 1/16; the final norm touches only the last block."""
        assert self.cls_token is not None and self.pos_embed is not None
        patch = self.config.patch_size
        # The image is normalised already, so that the padding has the mean colour.
        x = F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))
        x = self.patch_embed.proj(x)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + resize_pos_embed(self.pos_embed, grid)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
            if index == len(self.blocks) - 1:
                x = self.norm(x)  # an identity without final_norm
            if index in self.config.out_indices:
                outputs.append(_to_map(x, grid))
        return outputs


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position embedding `(1, 1 + n * n, D)` resized to `(1, 1 + grid[0] * grid[1], D)`.

    Bicubic without antialias, unlike timm's. Token counts are compared, not shapes: a 16x64 grid gets a 32x32
    embedding as it is, as in mmsegmentation.
    """
    tokens = pos_embed.shape[1] - 1
    if not sizes_are_open() and tokens == grid[0] * grid[1]:
        return pos_embed
    side = math.isqrt(tokens)
    patches = pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    resized = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    if sizes_are_open():  # the same rule, decided when the graph runs: an equal count makes an equal length
        index = torch.arange(grid[0] * grid[1], device=pos_embed.device)
        as_it_is = pos_embed[:, 1 + index % tokens]
        resized = torch.where(index[-1] + 1 == tokens, as_it_is, resized)
    return torch.cat((pos_embed[:, :1], resized), dim=1)


def _to_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """`(N, 1 + h * w, D)` -> `(N, D, h, w)`"""
    return x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, *grid)


def _init_random(vit: Any) -> None:
    """Fill the parameters as mmsegmentation does when no pretrained file is named."""
    nn.init.trunc_normal_(vit.cls_token, std=0.02)
    nn.init.trunc_normal_(vit.pos_embed, std=0.02)
    nn.init.kaiming_normal_(vit.patch_embed.proj.weight, mode="fan_in", nonlinearity="relu")
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
    for block in vit.blocks:
        nn.init.xavier_uniform_(block.attn.qkv.weight)  # nn.MultiheadAttention's own, which mmsegmentation keeps
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.trunc_normal_(block.attn.proj.weight, std=0.02)
        nn.init.zeros_(block.attn.proj.bias)
        for linear in (block.mlp.fc1, block.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.normal_(linear.bias, std=1e-6)
