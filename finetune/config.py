"""The choices that the recipes of all tasks share. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from backbones.config import SecConfig
from data.config import DataConfig
from engine.config import may_change
from engine.errors import UserError
from engine.loop.sections import Sections
from engine.terms import Size


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The network and its first weights; what is left out comes from the folder `init`."""

    init: Path | None = None
    """`backbone/` folder of a pretraining (or fine-tuning) run, or an imported one; None starts from random weights."""
    name: str | None = None
    """timm architecture name; with `init` it must be the folder's own."""
    img_size: Size | None = None
    """Input height and width in pixels; tables and position embeddings are resized where the folder's is another."""
    window: int | None = None
    """Attention window side in tokens; bias tables are resized where it differs from the folder's."""
    embed_dim: int | None = None
    """Width of the first stage; with `init` it must be the folder's own."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage; with `init` it must be the folder's own."""
    num_heads: tuple[int, ...] | None = None
    """Heads per stage; with `init` it must be the folder's own."""
    sec: SecConfig = field(default_factory=SecConfig)
    """Options of SecViT and the other SEC backbones; with `init` they must be the folder's own."""
    windows: Literal["exact", "timm"] = "exact"
    """Attention windows where a grid is no multiple of them; exact: of the true grid, timm: padded, as timm itself has
    them, for weights that plain timm will serve at such a size."""
    drop_path: float = 0.1
    """Highest stochastic-depth rate, rising linearly over the blocks."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the pixels in [0, 1]; None takes the folder's, or ImageNet's without one."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations of the pixels in [0, 1]; None takes the folder's, or ImageNet's without one."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"backbone.drop-path must lie in [0, 1), got {self.drop_path}")


class EvaluationTimes(Protocol):
    """When a run of any task is measured, and on how many images at once."""

    @property
    def every_epochs(self) -> float: ...  # noqa: D102
    @property
    def every_steps(self) -> int | None: ...  # noqa: D102
    @property
    def micro_batch_size(self) -> int: ...  # noqa: D102


def check_evaluation(config: EvaluationTimes) -> None:
    """Refuse numbers that are not positive.

    Raises:
        UserError: one is not.
    """
    if config.every_epochs <= 0 or (config.every_steps is not None and config.every_steps < 1):
        raise UserError("evaluation.every-epochs must be positive and evaluation.every-steps at least 1")
    if config.micro_batch_size < 1:
        raise UserError(f"evaluation.micro-batch-size must be at least 1, got {config.micro_batch_size}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When a run is measured; the last step always is."""

    every_epochs: float = may_change(1.0)
    """Passes over the training samples between evaluations; or give `every_steps`."""
    every_steps: int | None = may_change(None, overrides="every_epochs")
    """Optimizer steps between evaluations."""
    micro_batch_size: int = may_change(1)
    """Images of one forward in evaluations."""

    def __post_init__(self) -> None:
        check_evaluation(self)


class FinetuneConfig(Sections, Protocol):
    """What the recipes of every task have."""

    @property
    def data(self) -> DataConfig:
        """The training shards, and how shards are read."""
        ...

    @property
    def val_shards(self) -> str:
        """Folder with the shards that are measured on."""
        ...

    @property
    def backbone(self) -> StartConfig:
        """The backbone and its first weights."""
        ...

    @property
    def evaluation(self) -> EvaluationTimes:
        """When a run is measured."""
        ...

    @property
    def eval_only(self) -> str | None:
        """What to measure in place of training, as earlier versions spelled it."""
        ...


def steps_between_evaluations(config: EvaluationTimes, *, steps_per_epoch: int) -> int:
    """Count the optimizer steps from one evaluation of a run to the next."""
    return config.every_steps or max(1, round(config.every_epochs * steps_per_epoch))
