"""The recipes by name: the eleven published rows of mmsegmentation's `configs/vit`, and small ones for laptops.

A published row keeps its name of mmsegmentation 0.x and carries the figures of its table. The nano recipes use the
same code with a few million parameters and learn from random weights in minutes on a CPU.
"""

from vitrail.config import (
    BackboneConfig,
    FCNHeadConfig,
    ModelConfig,
    MultiLevelNeckConfig,
    OptimizerConfig,
    Published,
    Recipe,
    TransformConfig,
    UPerHeadConfig,
)
from vitrail.errors import UnknownNameError
from vitrail.schedules import PolySchedule

NECKS = ("none", "mln", "ln_mln")
"""Names of the three necks of the published table: final norm off or on, multi-level neck or none."""

# The original ViT weights, not timm's AugReg default of the same architecture.
_VIT_B_WEIGHTS = "vit_base_patch16_224.orig_in21k_ft_in1k"
_DEIT_S_WEIGHTS = "deit_small_patch16_224.fb_in1k"
_DEIT_B_WEIGHTS = "deit_base_patch16_224.fb_in1k"


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UnknownNameError: there is none; the message names the closest one.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]


def with_neck(model: ModelConfig, neck: str) -> ModelConfig:
    """The same model with another of the three necks in `NECKS`."""
    if neck not in NECKS:
        raise UnknownNameError("neck", neck, NECKS)
    backbone = model.backbone.model_copy(update={"final_norm": neck == "ln_mln"})
    return model.model_copy(update={"backbone": backbone, "neck": None if neck == "none" else MultiLevelNeckConfig()})


def with_backbone(recipe: Recipe, backbone: str) -> Recipe:
    """The same recipe with another of the backbones in `BACKBONES`, and with its weights if it starts from any."""
    if backbone not in BACKBONES:
        raise UnknownNameError("backbone", backbone, BACKBONES)
    shape, pretrained = BACKBONES[backbone]
    width = {name: getattr(shape, name) for name in ("embed_dim", "num_heads", "depth", "out_indices")}
    model = recipe.model.model_copy(update={"backbone": recipe.model.backbone.model_copy(update=width)})
    return recipe.model_copy(update={"model": model, "pretrained": recipe.pretrained and pretrained})


def _published(
    stem: str, backbone: BackboneConfig, neck: str, steps: int, pretrained: str, figures: tuple[float, ...]
) -> Recipe:
    miou, miou_ms_flip, memory_gb, fps = figures
    return Recipe(
        name=f"upernet_{stem}_512x512_{steps // 1000}k_ade20k",
        model=with_neck(ModelConfig(backbone=backbone), neck),
        total_steps=steps,
        val_interval=steps // 10,
        pretrained=pretrained,
        published=Published(miou=miou, miou_ms_flip=miou_ms_flip, memory_gb=memory_gb, fps=fps),
    )


def _nano(neck: str) -> Recipe:
    """Three million parameters, a twelfth of the published image area, and a peak rate for random weights."""
    model = ModelConfig(
        backbone=_NANO,
        decode_head=UPerHeadConfig(channels=64),
        auxiliary_head=FCNHeadConfig(channels=32),
    )
    stem = "vit-nano" if neck == "none" else f"vit-nano_{neck}"
    return Recipe(
        name=f"upernet_{stem}_128x128_1k",
        model=with_neck(model, neck),
        optimizer=OptimizerConfig(weight_decay=0.05),
        schedule=PolySchedule(peak_lr=1e-3, warmup_steps=50),
        transforms=TransformConfig(scale=(512, 128), crop_size=128),
        total_steps=1000,
        val_interval=250,
    )


_NANO = BackboneConfig(embed_dim=128, num_heads=4, depth=8, out_indices=(1, 3, 5, 7), img_size=128)
_BASE = BackboneConfig(embed_dim=768, num_heads=12)
_SMALL = BackboneConfig(embed_dim=384, num_heads=6)
# Stochastic depth is off in the two ViT-B rows without LN, and in those alone.
_BASE_NO_DROP = BackboneConfig(embed_dim=768, num_heads=12, drop_path_rate=0.0)

BACKBONES: dict[str, tuple[BackboneConfig, str | None]] = {
    "vit-nano": (_NANO, None),
    "deit-s16": (_SMALL, _DEIT_S_WEIGHTS),
    "deit-b16": (_BASE, _DEIT_B_WEIGHTS),
    "vit-b16": (_BASE, _VIT_B_WEIGHTS),
}
"""Backbones by the published names, and timm's name of the weights that each starts from."""

_ROWS = [
    # mIoU, mIoU (ms+flip), memory in GB at batch 2, fps
    _published("vit-b16_mln", _BASE_NO_DROP, "mln", 80_000, _VIT_B_WEIGHTS, (47.71, 49.51, 9.20, 6.94)),
    _published("vit-b16_mln", _BASE_NO_DROP, "mln", 160_000, _VIT_B_WEIGHTS, (46.75, 48.46, 9.20, 7.58)),
    _published("vit-b16_ln_mln", _BASE, "ln_mln", 160_000, _VIT_B_WEIGHTS, (47.73, 49.95, 9.21, 6.82)),
    _published("deit-s16", _SMALL, "none", 80_000, _DEIT_S_WEIGHTS, (42.96, 43.79, 4.68, 29.85)),
    _published("deit-s16", _SMALL, "none", 160_000, _DEIT_S_WEIGHTS, (42.87, 43.79, 4.68, 29.19)),
    _published("deit-s16_mln", _SMALL, "mln", 160_000, _DEIT_S_WEIGHTS, (43.82, 45.07, 5.69, 11.18)),
    _published("deit-s16_ln_mln", _SMALL, "ln_mln", 160_000, _DEIT_S_WEIGHTS, (43.52, 45.01, 5.69, 12.39)),
    _published("deit-b16", _BASE, "none", 80_000, _DEIT_B_WEIGHTS, (45.24, 46.73, 7.75, 9.69)),
    _published("deit-b16", _BASE, "none", 160_000, _DEIT_B_WEIGHTS, (45.36, 47.16, 7.75, 10.39)),
    _published("deit-b16_mln", _BASE, "mln", 160_000, _DEIT_B_WEIGHTS, (45.46, 47.16, 9.21, 7.78)),
    _published("deit-b16_ln_mln", _BASE, "ln_mln", 160_000, _DEIT_B_WEIGHTS, (45.37, 47.23, 9.21, 7.75)),
    *(_nano(neck) for neck in NECKS),
]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ROWS}
