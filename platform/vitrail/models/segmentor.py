"""The segmentor: backbone, neck and two heads, as mmsegmentation's `EncoderDecoder` joins them.

logits = Segmentor(get_recipe("upernet_deit-s16_mln_512x512_160k_ade20k").model)(images)
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.config import ModelConfig
from vitrail.models.heads import FCNHead, UPerHead
from vitrail.models.loss import segmentation_loss
from vitrail.models.neck import MultiLevelNeck
from vitrail.models.vit import VisionTransformer


class Segmentor(nn.Module):
    """A model for one `ModelConfig`, with random weights. It knows nothing of devices, precision or other ranks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.embed_dim
        levels = [width] * len(config.backbone.out_indices)
        decode, auxiliary = config.decode_head, config.auxiliary_head
        self.backbone = VisionTransformer(config.backbone)
        self.neck = MultiLevelNeck(levels, width, scales=config.neck.scales) if config.neck else None
        self.decode_head = UPerHead(
            levels,
            decode.channels,
            config.num_classes,
            pool_scales=decode.pool_scales,
            dropout_ratio=decode.dropout_ratio,
        )
        self.auxiliary_head = FCNHead(
            width,
            auxiliary.channels,
            config.num_classes,
            in_index=auxiliary.in_index,
            dropout_ratio=auxiliary.dropout_ratio,
        )

    def extract_features(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(N, 3, H, W)` -> four levels: strides 4, 8, 16, 32 with the neck, all 16 without."""
        levels: list[Tensor] = self.backbone(x)
        if self.neck is None:
            return levels
        if self.backbone.recompute and self.training:
            return checkpoint(self.neck, levels, use_reentrant=False)
        return self.neck(levels)  # type: ignore[no-any-return]

    def set_recompute(self, recompute: bool) -> None:
        """Whether the backward pass computes blocks and neck again instead of keeping what is inside them. The heads
        are always kept: their batch norms would count a batch twice."""
        self.backbone.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images `(N, 3, H, W)` -> logits `(N, K, h, w)` of the decode head, not upsampled."""
        return self.decode_head(self.extract_features(x))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses and accuracies (in percent) of normalised images `(N, 3, H, W)` against labels `(N, H, W)`.

        `loss` is the one to minimise: `decode.loss_ce` + `aux.loss_ce`, the latter weighted already.
        """
        return self.losses(*self.both_logits(x), labels)

    def both_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images `(N, 3, H, W)` -> logits of the decode and the auxiliary head, not upsampled."""
        levels = self.extract_features(x)
        return self.decode_head(levels), self.auxiliary_head(levels)

    def losses(self, decode_logits: Tensor, aux_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What `loss` returns, of logits that are there already."""
        labels = labels.long()
        decode_loss, decode_accuracy = segmentation_loss(decode_logits, labels)
        aux_loss, aux_accuracy = segmentation_loss(aux_logits, labels)
        aux_loss = aux_loss * self.config.auxiliary_head.loss_weight
        return {
            "loss": decode_loss + aux_loss,
            "decode.loss_ce": decode_loss,
            "decode.acc_seg": decode_accuracy,
            "aux.loss_ce": aux_loss,
            "aux.acc_seg": aux_accuracy,
        }


def count_parameters(config: ModelConfig) -> int:
    """Of a segmentor, without making its tensors."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Segmentor(config).parameters())
