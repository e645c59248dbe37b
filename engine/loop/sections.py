"""What the training loop asks of a program's config and of its data, whichever program it is."""

from typing import Any, Protocol

from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig


class DataSection(Protocol):
    """The part of a data config that the loop needs: the global batch, and how much may be wrong with it."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def micro_batch_size(self) -> int: ...  # noqa: D102
    @property
    def max_bad_share(self) -> float: ...  # noqa: D102


class Sections(Protocol):
    """The config sections that every training program has."""

    @property
    def data(self) -> DataSection: ...  # noqa: D102
    @property
    def optimizer(self) -> OptimizerConfig: ...  # noqa: D102
    @property
    def run(self) -> RunConfig: ...  # noqa: D102
    @property
    def report(self) -> ReportConfig: ...  # noqa: D102
    @property
    def distributed(self) -> DistributedConfig: ...  # noqa: D102


class ReadCost(Protocol):
    """What reading micro-batches cost: adds up, and names its figures for a report."""

    def __add__(self, other: Any, /) -> "ReadCost": ...
    def metrics(self) -> dict[str, float]: ...  # noqa: D102
