"""The detectors that ``detector.kind`` may name. Imports no torch.

A new one is a module and an entry here; a file outside this project adds its entry when it is imported (``--extension
FILE``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DetectorEntry:
    """What is known of a detector before torch is imported."""

    make: str | Callable[..., Any]
    """Its class, or "module:class": called with the pyramid, ``config`` (a ``DetectConfig``) and ``num_classes``."""
    strides: tuple[int, ...]
    """Pixels per cell of the backbone's maps that it takes."""
    masks: bool = False
    """Whether it can find masks too."""
    letterbox: bool = False
    """Whether it takes images of one size only (``resize.mode letterbox``)."""

    def load(self) -> Callable[..., Any]:
        """Import its class."""
        if not isinstance(self.make, str):
            return self.make
        module, _, name = self.make.partition(":")
        return getattr(import_module(module), name)


ROOM = "finetune.detection.detectors"
DETECTORS: dict[str, DetectorEntry] = {
    "retinanet": DetectorEntry(make=f"{ROOM}.retinanet:RetinaNet", strides=(8, 16, 32)),
    "mask_rcnn": DetectorEntry(make=f"{ROOM}.mask_rcnn:MaskRCNN", strides=(4, 8, 16, 32), masks=True),
    "cascade": DetectorEntry(make=f"{ROOM}.cascade:CascadeRCNN", strides=(4, 8, 16, 32), masks=True),
    "yolo": DetectorEntry(make=f"{ROOM}.yolo:Yolo", strides=(8, 16, 32), letterbox=True),
}
