"""Hierarchical backbones, dense and on visible tokens only, registered with timm on import."""

from backbones import xformer

__all__ = ["xformer"]
