"""Hierarchical backbones, dense and on visible tokens only, registered with timm on import."""

from backbones.sec import faster_vit, sec_swin, secvit
from backbones.xformer import xformer

__all__ = ["faster_vit", "sec_swin", "secvit", "xformer"]
