"""Vitrail: distributed training of segmentation models with ViT backbones and UPerNet heads."""

__version__ = "0.1.0"
