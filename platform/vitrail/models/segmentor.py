"""The segmentor: backbone, neck and two heads, as mmsegmentation's `EncoderDecoder` joins them.

logits = Segmentor(get_recipe("upernet_deit-s16_mln_512x512_160k_ade20k").model)(images)
"""

from torch import Tensor, nn

from vitrail.config import ModelConfig
from vitrail.models.heads import FCNHead, UPerHead, segmentation_loss
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
        return levels if self.neck is None else self.neck(levels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images `(N, 3, H, W)` -> logits `(N, K, h, w)` of the decode head, not upsampled."""
        return self.decode_head(self.extract_features(x))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses and accuracies (in percent) of normalised images `(N, 3, H, W)` against labels `(N, H, W)`.

        `loss` is the one to minimise: `decode.loss_ce` + `aux.loss_ce`, the latter weighted already.
        """
        labels = labels.long()
        levels = self.extract_features(x)
        decode_loss, decode_accuracy = segmentation_loss(self.decode_head(levels), labels)
        aux_loss, aux_accuracy = segmentation_loss(self.auxiliary_head(levels), labels)
        aux_loss = aux_loss * self.config.auxiliary_head.loss_weight
        return {
            "loss": decode_loss + aux_loss,
            "decode.loss_ce": decode_loss,
            "decode.acc_seg": decode_accuracy,
            "aux.loss_ce": aux_loss,
            "aux.acc_seg": aux_accuracy,
        }
