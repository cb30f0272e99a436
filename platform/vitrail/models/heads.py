"""The heads that turn feature maps into logits.

Sources: Xiao et al. 2018 (UPerNet), Long et al. 2015 (FCN), as mmsegmentation 1.2 `decode_heads/` computes them.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vitrail.models.layers import AdaptiveAvgPool2d, ConvModule, resize
from vitrail.models.resized_conv import conv_of_resized


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest level, a feature pyramid over all of them, logits at the finest."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout_ratio: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AdaptiveAvgPool2d(scale), ConvModule(coarsest, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(coarsest + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels from fine to coarse -> logits `(N, num_classes, h, w)` at the size of the finest."""
        *finer, coarsest = levels
        laterals = [conv(level) for conv, level in zip(self.lateral_convs, finer, strict=True)]
        laterals.append(self._pool(coarsest))
        for i in reversed(range(len(finer))):
            laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i].shape[-2:])
        # The pooled level goes to the concatenation without a convolution of its own.
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)] + laterals[-1:]
        fused = _conv_of_resized(outputs, self.fpn_bottleneck, outputs[0])
        return self.conv_seg(self.dropout(fused))  # type: ignore[no-any-return]

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [module(x) for module in self.psp_modules]
        return _conv_of_resized([x, *pooled], self.bottleneck, x)


class FCNHead(nn.Module):
    """One 3x3 convolution and a classifier on one level."""

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, *, in_index: int, dropout_ratio: float = 0.1
    ) -> None:
        super().__init__()
        self.in_index = in_index
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.convs = nn.Sequential(ConvModule(in_channels, channels, 3))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels -> logits `(N, num_classes, h, w)` at the size of level `in_index`."""
        return self.conv_seg(self.dropout(self.convs(levels[self.in_index])))  # type: ignore[no-any-return]


def _conv_of_resized(levels: Sequence[Tensor], module: ConvModule, like: Tensor) -> Tensor:
    """`module` on the concatenation of all `levels` at the size of `like`."""
    height, width = like.shape[-2:]
    return module.activate(conv_of_resized(levels, module.conv, (height, width)))


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
