"""Hierarchical backbones, dense and on visible tokens only.

Importing this package has timm know the names of those in the zoo.
"""

from backbones.registry.zoo import register_with_timm

register_with_timm()
