"""AdamW, its parameter groups and its learning-rate schedule.

A group holds the parameters of one layer id that share one weight decay. Every learning rate is
``Schedule.lr(step) * group["lr_scale"]`` and nothing else multiplies by ``lr_scale``: the optimizer is stepped by
us, not by a timm scheduler (which would square the layer decay).
"""

import logging
import math
import re
from collections import defaultdict
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import nn

from engine.config import OptimizerConfig
from engine.errors import UserError

logger = logging.getLogger(__name__)

Group = dict[str, Any]
MOST_MILLIONS_ON_CPU = 50.0
"""Parameters, above which a step on CPUs takes many seconds."""

_NO_DECAY_LEAF = re.compile(r"relative_position_bias_table|pos_embed|token|^gamma|^layer_?scale", re.IGNORECASE)
_MERGE = re.compile(r"^((?:layers|stages)\.\d+\.)downsample\.")
_FINAL_NORM = re.compile(r"^norm\.")


def decays(name: str, *, ndim: int) -> bool:
    """Whether weight decay applies: not to 1-D tensors, bias tables, LayerScale, tokens, position embeddings."""
    return ndim > 1 and not _NO_DECAY_LEAF.search(name.rpartition(".")[2])


def find_backbone(model: nn.Module) -> str:
    """Find the prefix ("" or "encoder.") of the outermost part of ``model`` that has timm's ``group_matcher``.

    Raises:
        UserError: there is none, or there are several.
    """
    backbones: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(not outer or name.startswith(f"{outer}.") for outer in backbones)
        if not is_inside and hasattr(module, "group_matcher"):
            backbones.append(name)
    if len(backbones) != 1:
        raise UserError(
            f"layer decay needs one backbone with timm's group_matcher inside {type(model).__name__}, "
            f"found {backbones or 'none'}; set optimizer.layer-decay to 1"
        )
    return f"{backbones[0]}." if backbones[0] else ""


def layer_ids(backbone: nn.Module) -> dict[str, int]:
    """Number the layers of all parameters: 0 for the stem, j+1 for block j, one more for the final norm and the head.

    timm's own ids differ in two places. Its Swin merges at the start of a stage, so the merge shares the id of the
    block after it: here it takes the id of the block before it, as in SimMIM's code (where it ends a stage). And
    timm gives the final norm the id of the last block: here it goes with the head.
    """
    matcher = cast(Any, backbone).group_matcher(coarse=False)
    timm_ids = cast(dict[str, int], group_parameters(backbone, matcher, reverse=True))
    blocks = [i for name, i in timm_ids.items() if re.search(r"(?:^|\.)blocks\.\d+\.", name)]
    top = max(blocks, default=max(timm_ids.values())) + 1
    ids: dict[str, int] = {}
    for name, timm_id in timm_ids.items():
        merge = _MERGE.match(name)
        if merge:
            first_of_stage = min(i for other, i in timm_ids.items() if other.startswith(merge[1]))
            ids[name] = max(first_of_stage - 1, 0)
        else:
            ids[name] = top if _FINAL_NORM.match(name) else min(timm_id, top)
    return ids


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_lr_scale: float = 1.0,
) -> list[Group]:
    """Make AdamW's groups, lowest layer first: ``params``, ``names``, ``weight_decay``, ``lr_scale``, ``name``.

    ``lr_scale`` is ``layer_decay ** (highest layer id - layer id)``; what lies outside the backbone (a decoder, a
    head) gets ``head_lr_scale``. Frozen parameters are left out.

    Raises:
        UserError: ``layer_decay`` or ``head_lr_scale`` is not 1, and there is not one backbone with a head outside it.
    """
    scales, own_rule = _scales(model, layer_decay=layer_decay, head_lr_scale=head_lr_scale)
    members: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = decays(name, ndim=parameter.ndim) and name not in own_rule
            members[scales.get(name, (_OUTSIDE, 1.0))[0], decay].append((name, parameter))
    scale_of = dict(scales.values())
    groups: list[Group] = []
    for layer, decay in sorted(members, key=lambda key: (key[0], not key[1])):
        named = members[layer, decay]
        place = "all" if not scales else "outside" if layer == _OUTSIDE else f"layer_{layer:02d}"
        groups.append(
            {
                "params": [parameter for _, parameter in named],
                "names": [name for name, _ in named],
                "weight_decay": weight_decay if decay else 0.0,
                "lr_scale": scale_of.get(layer, head_lr_scale),
                "name": f"{place}_{'decay' if decay else 'no_decay'}",
            }
        )
    return groups


_OUTSIDE = 1_000_000


def _scales(
    model: nn.Module, *, layer_decay: float, head_lr_scale: float
) -> tuple[dict[str, tuple[int, float]], set[str]]:
    """Find (layer id, scale) by parameter name, and the names that the backbone itself excludes from decay."""
    as_one = layer_decay == head_lr_scale == 1
    if as_one and not any(hasattr(m, "group_matcher") for m in model.modules()):
        return {}, set()
    prefix = find_backbone(model)
    backbone = model.get_submodule(prefix.rstrip("."))
    own_rule = {prefix + name for name in getattr(backbone, "no_weight_decay", set[str])()}
    if as_one:
        return {}, own_rule
    if head_lr_scale != 1 and not prefix:
        raise UserError(
            f"optimizer.head-lr-scale {head_lr_scale:g} is for heads outside the backbone, and {type(model).__name__} "
            "has none; set it to 1"
        )
    ids = layer_ids(backbone)
    top = max(ids.values())
    return {prefix + name: (i, layer_decay ** (top - i)) for name, i in ids.items()}, own_rule


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, batch_size: int) -> torch.optim.AdamW:
    """Make AdamW (fused) over ``param_groups``; its first ``lr`` is the peak times each group's ``lr_scale``."""
    peak_lr = config.base_lr * batch_size / config.lr_batch_size
    groups = param_groups(
        model,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        head_lr_scale=config.head_lr_scale,
    )
    for group in groups:
        group["lr"] = peak_lr * group["lr_scale"]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=peak_lr, betas=config.betas, eps=config.eps, fused=fused)


class Schedule:
    """Linear warm-up, then half a cosine, a polynomial or steps, per optimizer step; steps count from 0.

    Args:
        config: rates and lengths.
        batch_size: images of one optimizer step.
        steps_per_epoch: optimizer steps of one pass over the samples.
    """

    def __init__(self, config: OptimizerConfig, *, batch_size: int, steps_per_epoch: int) -> None:
        self.config, self.batch_size, self.steps_per_epoch = config, batch_size, steps_per_epoch
        if self.total_steps < 1:
            raise UserError(f"the run has no steps: optimizer.epochs {config.epochs} of {steps_per_epoch} steps each")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise UserError(
                f"the warm-up of {self.warmup_steps} steps (optimizer.warmup-epochs {config.warmup_epochs}, "
                f"{steps_per_epoch} steps each) does not fit in the run of {self.total_steps} steps; set "
                "optimizer.warmup-steps"
            )

    def __str__(self) -> str:
        epochs = self.total_steps / self.steps_per_epoch
        return (
            f"{self.total_steps} steps of {self.batch_size} images ({epochs:.4g} epochs of {self.steps_per_epoch} "
            f"steps), {self.warmup_steps} of them warm-up to a learning rate of "
            f"{self.config.base_lr * self.batch_size / self.config.lr_batch_size:.3g}"
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.steps or round(self.config.epochs * self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps until the peak."""
        if self.config.warmup_steps is not None:
            return self.config.warmup_steps
        return round(self.config.warmup_epochs * self.steps_per_epoch)

    def lr(self, step: int) -> float:
        """Compute the learning rate of step ``step`` for a group whose ``lr_scale`` is 1."""
        factor = self.batch_size / self.config.lr_batch_size
        first, peak, last = (factor * x for x in (self.config.warmup_lr, self.config.base_lr, self.config.min_lr))
        if step < self.warmup_steps:
            return first + (peak - first) * step / self.warmup_steps
        if self.config.decay == "steps":
            return peak * self.config.decay_factor ** sum(
                step >= round(x * self.total_steps) for x in self.config.decay_at
            )
        progress = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1.0)
        if self.config.decay == "poly":
            return last + (peak - last) * (1 - progress) ** self.config.poly_power
        return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * progress))

    def lrs(self, optimizer: torch.optim.Optimizer, step: int) -> list[float]:
        """Compute each group's learning rate at ``step``."""
        lr = self.lr(step)
        return [lr * group["lr_scale"] for group in optimizer.param_groups]


def say_plan(schedule: Schedule, model: nn.Module, *, device: torch.device) -> None:
    """Say how long the run is, whatever led to it, and that a network is one for GPUs where there are none."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%.1f M parameters on %s; %s", millions, device, schedule)
    if device.type == "cpu" and millions > MOST_MILLIONS_ON_CPU:
        logger.warning(
            "a network of %.0f M parameters may take a minute or more a step on CPUs, and there are %d steps; --recipe "
            "tiny_cpu is for trying things out, --optimizer.steps sets another length",
            *(millions, schedule.total_steps),
        )
