"""Semantic segmentation: SegViT and pixel classifiers on any backbone, trained from shards with label maps."""
