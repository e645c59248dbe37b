"""Hierarchical backbones, dense and on visible tokens only, registered with timm on import."""

from backbones import secvit, xformer

__all__ = ["secvit", "xformer"]
