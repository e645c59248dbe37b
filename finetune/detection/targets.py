"""What a micro-batch's images hold, on their way to a device and in the form of torchvision's detection parts.

Legend: n objects of one image, h w its height and width in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """One entry an image; crowds are left out: nothing is learnt from them."""

    boxes: tuple[Tensor, ...]
    """[n, 4]: left, top, right, bottom in pixels."""
    labels: tuple[Tensor, ...]
    """[n], class numbers from 0."""
    masks: tuple[Tensor, ...] | None = None
    """[n, h, w], boolean."""

    @classmethod
    def of(cls, annotated: list[dict[str, Tensor]], *, masks: bool) -> "Targets":
        """Return the objects of images as `data.images.joint_transforms` gives them."""
        kept = [~value["crowd"] for value in annotated]
        pairs = list(zip(annotated, kept, strict=True))
        return cls(
            boxes=tuple(value["boxes"][keep].float() for value, keep in pairs),
            labels=tuple(value["labels"][keep] for value, keep in pairs),
            masks=tuple(value["masks"][keep] for value, keep in pairs) if masks else None,
        )

    def to(self, device: torch.device) -> "Targets":
        """Return them on ``device``."""
        return self._changed(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Targets":
        """Return them in pinned memory."""
        return self._changed(Tensor.pin_memory)

    def as_dicts(self) -> list[dict[str, Tensor]]:
        """Return torchvision's form: one dict an image with ``boxes``, ``labels`` and, if known, ``masks``."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            {name: values[row] for name, values in named.items() if values is not None}
            for row in range(len(self.boxes))
        ]

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        masks = None if self.masks is None else tuple(map(change, self.masks))
        return Targets(boxes=tuple(map(change, self.boxes)), labels=tuple(map(change, self.labels)), masks=masks)
