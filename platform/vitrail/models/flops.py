"""How much arithmetic a segmentor is: as mmsegmentation orders it, and as it is computed here.

    nominal_flops(get_recipe("upernet_deit-s16_mln_512x512_160k_ade20k").model, 512)

Both count matrix products, convolutions and attention, as torch's FlopCounterMode does; what is left out (norms,
activations, resizing as such, the loss) is under one percent.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.config import ModelConfig
from vitrail.models.segmentor import Segmentor

TRAINING_FACTOR = 3
"""FLOPs of forward and backward over those of forward: a backward pass computes two products for each of forward's."""


def nominal_flops(model_config: ModelConfig, crop_size: int, *, auxiliary: bool = True) -> float:
    """FLOPs of one image's forward pass in mmsegmentation's own order, a multiply-add counting as two.

    For one image of `crop_size` x `crop_size` through backbone, neck and both heads, to the logits before upsampling.
    Training takes `TRAINING_FACTOR` times as many. It is what throughput is to be compared by, since it does not change
    with how the same result is computed; `computed_flops` are fewer.

    Args:
        auxiliary: False leaves out the auxiliary head, which inference does without.
    """
    backbone, decode, aux = model_config.backbone, model_config.decode_head, model_config.auxiliary_head
    width, channels, classes = backbone.embed_dim, decode.channels, model_config.num_classes
    side = -(-crop_size // backbone.patch_size)
    scales = model_config.neck.scales if model_config.neck else (1.0,) * len(backbone.out_indices)
    levels = [int(side * scale) ** 2 for scale in scales]  # pixels of each
    finest, *_, coarsest = levels
    pooled = len(decode.pool_scales) * channels

    macs = _backbone_macs(model_config, side)
    if model_config.neck is not None:
        macs += sum(side**2 * width**2 + 9 * pixels * width**2 for pixels in levels)
    macs += sum(scale**2 * width * channels for scale in decode.pool_scales)
    macs += 9 * coarsest * (width + pooled) * channels  # bottleneck of the pooled levels
    macs += sum(pixels * (width + 9 * channels) * channels for pixels in levels[:-1])  # lateral and FPN
    macs += finest * (9 * len(levels) * channels + classes) * channels  # fusion of all levels, and the classifier
    if auxiliary:
        macs += levels[aux.in_index] * (9 * width + classes) * aux.channels
    return float(2 * macs)


def computed_flops(model_config: ModelConfig, crop_size: int, *, auxiliary: bool = True) -> float:
    """The same of the network as it is: some of its convolutions are computed before upsampling (`resized_conv`).

    Counted by torch on tensors without data.
    """
    with torch.device("meta"):
        model, image = Segmentor(model_config), torch.empty(1, 3, crop_size, crop_size)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()  # batch norm over a pooled 1 x 1 map takes more than one image in training
        model.both_logits(image) if auxiliary else model(image)
    return float(counter.get_total_flops())


def _backbone_macs(model_config: ModelConfig, side: int) -> float:
    """Multiply-adds of patch embedding and blocks on `side` x `side` patches and the class token."""
    config = model_config.backbone
    width, tokens = config.embed_dim, side**2 + 1
    linear = tokens * width**2 * (4 + 2 * config.mlp_ratio)  # qkv, projection, MLP
    attention = 2 * tokens**2 * width
    return side**2 * 3 * config.patch_size**2 * width + config.depth * (linear + attention)
