"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) at the width of XFormer's detector: 96 channels, strides 8, 16, 32.

Images are letterboxed to one size, and the letterbox counts as image. Neck and head are those of MMDetection's
MobileNetV2-YOLOv3 as methods.md 5.2 describes it: with XFormer 6.24 M parameters and 3.76 GMACs at 320 px.

An object has one positive: the anchor of all nine that fits its shape best (IoU), at the cell with its centre. Other
predictions whose box overlaps an object by more than 0.5 do not count as background.

Legend: b images, s anchors of one cell, h w rows and columns of a map, a all anchors of an image, n objects, k classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.conv_bn_act import ConvNormAct
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image

from engine.terms import Size
from finetune.detection.config import DetectConfig
from finetune.detection.detectors.feature_maps import in_full
from finetune.network.pyramid import Pyramid

STRIDES = (8, 16, 32)
ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
"""Width and height in pixels of COCO's nine clusters at 416 px, three a stride; at other sizes they are scaled."""
ANCHOR_SIZE = 416
PER_LEVEL = 3
WIDTH = 96
IGNORE_IOU = 0.5
CANDIDATES = 1000
OFFSET_WEIGHT = 2.0
MAX_LOG_SIDE = 4.0


class Yolo(nn.Module):
    """Boxes, objectness and classes from every cell of three maps."""

    def __init__(self, pyramid: Pyramid, *, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        own = config.detector
        width = own.width or WIDTH
        self.pyramid, self.num_classes = pyramid, num_classes
        self.blocks = nn.ModuleList()
        self.links = nn.ModuleList()
        for number, channels in enumerate(reversed(pyramid.channels)):
            self.blocks.append(_detection_block(channels + (width if number else 0), width))
            if number:
                self.links.append(_conv(width, width, 1))
        outputs = PER_LEVEL * (5 + num_classes)
        self.bridges = nn.ModuleList(_conv(width, width, 3) for _ in STRIDES)
        self.predictors = nn.ModuleList(nn.Conv2d(width, outputs, 1) for _ in STRIDES)
        self.score_threshold, self.max_detections = own.score_threshold, own.max_detections
        self.nms_iou = own.nms_threshold or 0.45
        scale = min(config.resize.canvas) / ANCHOR_SIZE
        self.register_buffer("anchor_sides", torch.tensor(ANCHORS) * scale, persistent=False)
        self.anchor_sides: Tensor

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses where there are ``targets``, else detect: each image's boxes, scores and labels.

        ``sizes`` are all that of the canvas.
        """
        flat, boxes, maps = self.dense(images)
        if targets is None:
            return [self._detect(*pair, size=size) for *pair, size in zip(flat, boxes, sizes, strict=True)]
        cells = self._cells(maps, like=flat)
        parts = [
            self._losses(x, box.detach(), cells, target=target, maps=maps)
            for x, box, target in zip(flat, boxes, targets, strict=True)
        ]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor, list[Size]]:
        """Logits [b, a, 5 + k] and boxes [b, a, 4] of all anchors, and the maps' rows and columns."""
        raw = self.raw(images)
        maps = [(x.shape[2], x.shape[3]) for x in raw]
        flat = torch.cat([_by_anchor(x, self.num_classes) for x in raw], dim=1)
        return flat, _decode(flat, self._cells(maps, like=flat)), maps

    def raw(self, images: Tensor) -> list[Tensor]:
        """Compute the predictors' maps [b, s * (5 + k), h w], finest first; the images' sides are multiples of 32."""
        maps = self.pyramid(images)[::-1]
        x = self.blocks[0](maps[0])
        features = [x]
        for link, block, finer in zip(self.links, list(self.blocks)[1:], maps[1:], strict=True):
            up = F.interpolate(link(x), size=finer.shape[-2:], mode="nearest")
            x = block(torch.cat([up, finer], dim=1))
            features.append(x)
        heads = zip(self.predictors, self.bridges, reversed(features), strict=True)
        return [in_full(predict(bridge(x))) for predict, bridge, x in heads]

    def _cells(self, maps: Sequence[Size], *, like: Tensor) -> Tensor:
        """List for each anchor [a, 5] column and row of its cell, stride, width and height in pixels."""
        rows: list[Tensor] = []
        for level, (height, width) in enumerate(maps):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            corner = torch.stack([x, y], dim=2).view(-1, 1, 2).expand(-1, PER_LEVEL, 2).to(like)
            sides = self.anchor_sides[PER_LEVEL * level : PER_LEVEL * (level + 1)].to(like)
            sides = sides.expand(len(corner), -1, -1)
            stride = torch.full_like(corner[..., :1], STRIDES[level])
            rows.append(torch.cat([corner, stride, sides], dim=2).flatten(0, 1))
        return torch.cat(rows)

    def _losses(
        self, x: Tensor, boxes: Tensor, cells: Tensor, *, target: dict[str, Tensor], maps: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Sum one image's losses: offsets and classes of the positives, objectness of all that are not ignored."""
        truth, labels = target["boxes"].to(x), target["labels"]
        anchors = self._positives(truth, maps=maps)
        anchors, first = _unique(anchors)
        truth_of, label_of = truth[first], labels[first]
        objectness = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        objectness[anchors] = 1
        counted = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if len(truth):
            counted = box_iou(boxes, truth).amax(1) <= IGNORE_IOU
        counted[anchors] = True
        at, place = x[anchors], cells[anchors]
        centre, sides = box_convert(truth_of, "xyxy", "cxcywh").split(2, dim=1)
        inside = (centre / place[:, 2:3] - place[:, :2]).clamp(0, 1)
        classes = F.one_hot(label_of, self.num_classes).to(x)
        bce = F.binary_cross_entropy_with_logits
        logs = torch.log(sides / place[:, 3:])
        return {
            "offset": OFFSET_WEIGHT * bce(at[:, :2], inside, reduction="sum"),
            "side": OFFSET_WEIGHT * F.mse_loss(at[:, 2:4], logs, reduction="sum"),
            "object": bce(x[counted, 4], objectness[counted], reduction="sum"),
            "class": bce(at[:, 5:], classes, reduction="sum"),
        }

    def _positives(self, truth: Tensor, *, maps: Sequence[Size]) -> Tensor:
        """Number each object's anchor among all of the image's."""
        sides = truth[:, 2:] - truth[:, :2]
        anchors = self.anchor_sides.to(truth)
        shared = torch.minimum(sides[:, None], anchors).prod(2)
        best = (shared / (sides.prod(1)[:, None] + anchors.prod(1) - shared)).argmax(1)
        level = best // PER_LEVEL
        grid = torch.tensor(maps, device=truth.device)[level]
        stride = torch.tensor(STRIDES, device=truth.device)[level]
        centre = (truth[:, :2] + truth[:, 2:]) / 2 / stride[:, None]
        column, row = (centre[:, i].long().clamp(min=0).minimum(grid[:, 1 - i] - 1) for i in (0, 1))
        counts = torch.tensor([0, *(h * w * PER_LEVEL for h, w in maps)], device=truth.device).cumsum(0)
        return counts[level] + (row * grid[:, 1] + column) * PER_LEVEL + best % PER_LEVEL

    def _detect(self, x: Tensor, boxes: Tensor, *, size: Size) -> dict[str, Tensor]:
        scores = (x[:, 4:5].sigmoid() * x[:, 5:].sigmoid()).flatten()
        candidates = torch.where(scores > self.score_threshold)[0]
        top = scores[candidates].topk(min(len(candidates), CANDIDATES)).indices
        candidates = candidates[top]
        labels = candidates % self.num_classes
        inside = clip_boxes_to_image(boxes[candidates // self.num_classes], size)
        best = batched_nms(inside, scores[candidates], labels, self.nms_iou)[: self.max_detections]
        return {"boxes": inside[best], "scores": scores[candidates][best], "labels": labels[best]}


def _by_anchor(x: Tensor, num_classes: int) -> Tensor:
    """b (s v) h w -> b (h w s) v: a row an anchor, the cells in raster order."""
    x = x.unflatten(1, (PER_LEVEL, 5 + num_classes))
    return x.permute(0, 3, 4, 1, 2).flatten(1, 3)


def _decode(x: Tensor, cells: Tensor) -> Tensor:
    """Decode boxes [b, a, 4] as left, top, right, bottom in pixels."""
    centre = (x[..., :2].sigmoid() + cells[:, :2]) * cells[:, 2:3]
    sides = x[..., 2:4].clamp(max=MAX_LOG_SIDE).exp() * cells[:, 3:]
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)


def _unique(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct anchors and, for each, the first object that chose it."""
    distinct, inverse = anchors.unique(return_inverse=True)
    numbers = torch.arange(len(anchors), device=anchors.device)
    first = torch.full_like(distinct, len(anchors)).scatter_reduce(0, inverse, numbers, "amin")
    return distinct, first


def _detection_block(in_channels: int, width: int) -> nn.Sequential:
    kernels = (1, 3, 1, 3, 1)
    widths = (in_channels, width, 2 * width, width, 2 * width, width)
    return nn.Sequential(*(_conv(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels)))


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    return ConvNormAct(in_channels, out_channels, kernel, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.1})
