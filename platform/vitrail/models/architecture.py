"""Which model a set of tensors belongs to."""

import math
from collections.abc import Mapping

from torch import Tensor

from vitrail.config import BackboneConfig, FCNHeadConfig, ModelConfig, MultiLevelNeckConfig, Recipe, UPerHeadConfig
from vitrail.errors import UsageError
from vitrail.recipes import RECIPES

_HEAD_DIM = 64
"""Channels of an attention head in every published ViT and DeiT."""


def infer_model(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The model whose tensors, by our names, these are; heads that are not there get the published sizes.

    What tensors do not show comes from the recipe of the same width and depth: attention heads and output blocks.

    Raises:
        UsageError: they are not those of a ViT that a recipe can build.
    """
    backbone = _infer_backbone(tensors)
    if not is_segmentor(tensors):
        return ModelConfig(backbone=backbone)
    pools = {name.split(".")[2] for name in tensors if name.startswith("decode_head.psp_modules.")}
    if len(pools) != len(UPerHeadConfig().pool_scales):
        raise UsageError(f"the decode head pools at {len(pools)} scales; a UPerHead at {UPerHeadConfig().pool_scales}")
    num_classes, channels = tensors["decode_head.conv_seg.weight"].shape[:2]
    auxiliary = FCNHeadConfig()
    if "auxiliary_head.conv_seg.weight" in tensors:
        auxiliary = FCNHeadConfig(channels=tensors["auxiliary_head.conv_seg.weight"].shape[1])
    return ModelConfig(
        backbone=backbone,
        neck=MultiLevelNeckConfig() if any(name.startswith("neck.") for name in tensors) else None,
        decode_head=UPerHeadConfig(channels=channels),
        auxiliary_head=auxiliary,
        num_classes=num_classes,
    )


def matching_recipe(config: ModelConfig) -> Recipe | None:
    """The first recipe of the same architecture, with the classes and the patch bias of `config`, if there is one."""
    for recipe in RECIPES.values():
        if _architecture(recipe.model) == _architecture(config):
            biased = recipe.model.backbone.model_copy(update={"patch_bias": config.backbone.patch_bias})
            model = recipe.model.model_copy(update={"backbone": biased, "num_classes": config.num_classes})
            return recipe.model_copy(update={"model": model})
    return None


def is_segmentor(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a decode head beside the backbone."""
    return "decode_head.conv_seg.weight" in tensors


def grid_side(pos_embed: Tensor) -> int:
    """Side of the square grid of a position embedding `(1, 1 + side * side, D)`."""
    tokens = pos_embed.shape[1] - 1
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UsageError(
            f"the position embedding has {tokens + 1} tokens, which is not a square grid and one class token "
            "(distilled models have a token more: use the undistilled ones)"
        )
    return side


def _architecture(config: ModelConfig) -> ModelConfig:
    """The model without its number of classes, its patch bias, and what shows in training alone."""
    same = {"drop_path_rate": 0.0, "drop_path_attn": True, "patch_bias": True}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=same), "num_classes": 1})


def _infer_backbone(tensors: Mapping[str, Tensor]) -> BackboneConfig:
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    lacking = [name for name in needed if f"backbone.{name}" not in tensors]
    if lacking:
        raise UsageError(f"these are not the weights of a ViT: there is no {', '.join(lacking)}")
    embed_dim, _, patch_size, _ = tensors["backbone.patch_embed.proj.weight"].shape
    depth = len({name.split(".")[2] for name in tensors if name.startswith("backbone.blocks.")})
    like = [r.model.backbone for r in RECIPES.values() if r.model.backbone.embed_dim == embed_dim]
    like = [backbone for backbone in like if backbone.depth == depth]
    quarter = depth // 4
    return BackboneConfig(
        embed_dim=embed_dim,
        num_heads=like[0].num_heads if like else max(1, embed_dim // _HEAD_DIM),
        depth=depth,
        mlp_ratio=tensors["backbone.blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        img_size=grid_side(tensors["backbone.pos_embed"]) * patch_size,
        patch_size=patch_size,
        out_indices=like[0].out_indices if like else (quarter - 1, 2 * quarter - 1, 3 * quarter - 1, depth - 1),
        final_norm="backbone.norm.weight" in tensors,
        patch_bias="backbone.patch_embed.proj.bias" in tensors,
    )
