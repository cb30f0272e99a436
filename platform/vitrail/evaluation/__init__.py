"""Inference over whole images, the metrics of segmentation, and pictures of predictions."""
