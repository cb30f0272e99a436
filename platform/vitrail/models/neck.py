"""The neck: one feature map of stride 16 per level becomes a pyramid of strides 4, 8, 16 and 32."""

from collections.abc import Sequence

from torch import Tensor, nn

from vitrail.models.layers import ConvModule
from vitrail.models.resized_conv import conv_of_scaled


class MultiLevelNeck(nn.Module):
    """1x1 convolution, bilinear resize by a factor and 3x3 convolution on each level (mmsegmentation 1.2)."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1, plain=True) for c in in_channels)
        self.convs = nn.ModuleList(ConvModule(out_channels, out_channels, 3, plain=True) for _ in self.scales)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels `(N, C, h, w)` -> levels `(N, out_channels, floor(h * scale), floor(w * scale))`."""
        outputs = []
        for level, scale, lateral, conv in zip(levels, self.scales, self.lateral_convs, self.convs, strict=True):
            outputs.append(conv_of_scaled(lateral(level), conv.conv, scale))  # type: ignore[arg-type]
        return outputs
