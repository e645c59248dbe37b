"""Hierarchical backbones, dense and on visible tokens only, registered with timm on import."""
