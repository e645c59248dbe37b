"""The record of a micro-batch that was not finite, from which it can be repeated; nothing in it is pickled.

runs/x/non_finite/step-000000007/
├── micro-batch-00002.json           the record: samples, first bad module, the metrics before
├── micro-batch-00002.safetensors    the micro-batch's tensors as they were trained on: pixels, mask, ids
└── weights/step-000000007/          the weights that it met, as a checkpoint
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from engine.checkpoint.tensor_files import read_tensors, write_tensors
from engine.documents import from_tree, json_lines, parse_json
from engine.errors import UserError
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)

FOLDER = "non_finite"
RECENT_LINES = 20


@dataclass(frozen=True, kw_only=True)
class NonFiniteRecord:
    """One micro-batch whose loss or gradients were not finite."""

    step: int
    """Steps done before it."""
    micro_batch: int
    """Its number in its step."""
    rank: int
    """The process that computed it."""
    world_size: int
    """How many there were."""
    precision: str
    """`distributed.precision` of the run."""
    loss: float | str
    """Its loss; NaN and infinities in words, which JSON has no numbers for."""
    first_module: str | None
    """First module with an output that was not finite."""
    first_module_type: str | None
    """Its class."""
    first_parameter: str | None
    """First parameter with a gradient that was not finite."""
    samples: list[dict[str, Any]]
    """id, key and shard of each sample, in their order."""
    recent_metrics: list[dict[str, Any]]
    """The last lines of `metrics.jsonl`."""

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"micro-batch-{self.micro_batch:05d}"

    def write(self, run_folder: Path, batch: Mapping[str, Tensor]) -> Path:
        """Write the record and its tensors; return the record's path."""
        folder = record_folder(run_folder, self.step)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f"{self.name}.safetensors", batch)
        path = folder / f"{self.name}.json"
        write_durably(path, json.dumps(asdict(self), indent=1).encode())
        return path

    @classmethod
    def read(cls, path: Path) -> tuple[Self, dict[str, Tensor]]:
        """Read a record and its tensors.

        Raises:
            UserError: it is none, or its tensors are missing.
        """
        try:
            record = from_tree(cls, parse_json(path.read_bytes()))
            return record, read_tensors(path.with_suffix(".safetensors"))
        except (OSError, UserError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise UserError(
                f"{path} is no record of a micro-batch: {reason}; expected runs/x/{FOLDER}/step-.../"
                f"micro-batch-....json with the .safetensors file beside it"
            ) from None

    def __str__(self) -> str:
        """Say in words what happened."""
        where = f"module {self.first_module or '(the model itself)'} ({self.first_module_type})"
        if self.first_module_type is None:
            where = f"gradient of {self.first_parameter}" if self.first_parameter else "loss"
        keys = ", ".join(str(sample.get("key", sample["id"])) for sample in self.samples[:4])
        more = ", ..." if len(self.samples) > 4 else ""
        return (
            f"micro-batch {self.micro_batch} of step {self.step} (process {self.rank}, samples {keys}{more}): "
            f"loss {self.loss}, first not finite in the {where}"
        )


def record_folder(run_folder: Path, step: int) -> Path:
    """Name the folder of a step's records."""
    return run_folder / FOLDER / f"step-{step:09d}"


def recent_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the last lines of ``metrics.jsonl``."""
    if not path.exists():
        return []
    return json_lines(path.read_bytes())[-RECENT_LINES:]
