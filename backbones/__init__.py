"""Hierarchical backbones, dense and on visible tokens only, registered with timm on import."""

from backbones import faster_vit, sec_swin, secvit, xformer

__all__ = ["faster_vit", "sec_swin", "secvit", "xformer"]
