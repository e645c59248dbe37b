"""Repeats one micro-batch that was not finite, from its record, and shows where it goes wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from backbones.build import layout_spec
from backbones.ops.window_attention import usable_rule
from backbones.visible.layout import build_layout
from engine.checkpoint.store import Checkpoint, newest_checkpoint, open_checkpoint
from engine.errors import UserError
from engine.faults.non_finite import NonFiniteSearch, tensors_in
from engine.faults.non_finite_record import FOLDER, NonFiniteRecord
from engine.randomness import torch_seed
from engine.recipe import parse
from engine.run.folder import step_folder
from pretrain.batches.masking import unit_mask
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import GreenMIM, build_model

SHOWN_BEFORE = 6
"""Modules shown before the first that goes wrong."""


def replay(path: Path) -> Group:
    """Show how the micro-batch of a record runs through the network, in the run's precision and in fp32.

    Needs no shards: pixels and mask are in the record, and the mask's layout follows from the recipe.

    Raises:
        UserError: ``path`` is no record of a pretraining run, or its weights are not there.
    """
    record, batch = NonFiniteRecord.read(path)
    run_folder = _run_folder(path)
    config = parse(PretrainConfig, ["--recipe", str(run_folder / "config.yaml")])
    checkpoint, origin = _weights(path, run_folder=run_folder, step=record.step)
    model = build_model(config, model_args=checkpoint.state["model_args"])
    if record.precision == "fp64":
        model = model.double()
    checkpoint.load_weights(model)
    precisions = [record.precision] + (["fp32"] if record.precision == "bf16" else [])
    tables = [_Passage(model, precision=precision).run(config, record, batch) for precision in precisions]
    return Group(str(record), origin, _table_of_inputs(batch), *tables)


@dataclasses.dataclass(kw_only=True)
class _Seen:
    """The outputs of one call of a module."""

    name: str
    kind: str
    low: float
    high: float
    finite: bool


class _Passage:
    """One forward and backward pass whose every output is looked at."""

    def __init__(self, model: nn.Module, *, precision: str) -> None:
        self._model, self._precision = model.train(), precision
        self._seen: list[_Seen] = []

    def run(self, config: PretrainConfig, record: NonFiniteRecord, batch: dict[str, Tensor]) -> Table:
        """Show the outputs up to the first that is not finite."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._model.named_modules()]
        try:
            with NonFiniteSearch(self._model) as search:
                loss = _loss(self._model, config, record, batch, precision=self._precision)
                loss.backward()
                finding = search.take(loss)
        finally:
            for handle in handles:
                handle.remove()
            self._model.zero_grad()
        first = next((number for number, seen in enumerate(self._seen) if not seen.finite), len(self._seen) - 1)
        title = f"in {self._precision}: loss {float(loss.detach()):.4g}"
        if finding is None:
            title += ", everything is finite"
        elif finding.module is None:
            title += f", every output is finite; the gradient of {finding.parameter} is not"
        table = Table("module", "class", "smallest", "largest", "finite", title=title)
        for seen in self._seen[max(0, first - SHOWN_BEFORE) : first + 2]:
            values = f"{seen.low:.4g}", f"{seen.high:.4g}"
            table.add_row(seen.name or "(the model)", seen.kind, *values, "yes" if seen.finite else "NO")
        return table

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, _inputs: Any, output: Any) -> None:
            for x in tensors_in(output):
                low, high = x.detach().float().aminmax() if x.numel() else (torch.zeros(()), torch.zeros(()))
                finite = bool(torch.isfinite(x.detach()).all())
                self._seen.append(
                    _Seen(name=name, kind=type(module).__name__, low=float(low), high=float(high), finite=finite)
                )

        return look


def _loss(
    model: Any, config: PretrainConfig, record: NonFiniteRecord, batch: dict[str, Tensor], *, precision: str
) -> Tensor:
    """Compute the loss of the micro-batch, with the dropout that it had in the run."""
    assert isinstance(model, GreenMIM)
    spec = layout_spec(model.encoder)
    seed, step, micro_batch = config.run.seed, record.step, record.micro_batch
    mask = unit_mask(spec.units, mask_ratio=config.mim.mask_ratio, seed=seed, step=step, micro_batch=micro_batch)
    rule = usable_rule(config.mim.grouping, torch.device("cpu"))
    layout = build_layout(spec, mask.visible, rule=rule).to("cpu")
    torch.manual_seed(torch_seed(seed, "model", step, micro_batch))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model(
            batch["images"],
            layout=layout,
            feature_units=batch["feature_units"],
            predicted_units=batch["predicted_units"],
        )


def _run_folder(path: Path) -> Path:
    folder = path.resolve().parents[2]
    if path.resolve().parents[1].name != FOLDER or not (folder / "config.yaml").exists():
        raise UserError(f"{path} does not lie in a run folder: expected runs/x/{FOLDER}/step-.../micro-batch-....json")
    return folder


def _weights(path: Path, *, run_folder: Path, step: int) -> tuple[Checkpoint, str]:
    """Find the weights that the micro-batch met, or where they are not there the run's newest, and say which."""
    kept = step_folder(path.parent / "weights", step)
    if kept.exists():
        return open_checkpoint(kept), f"with the weights that it met, after step {step}"
    newest = newest_checkpoint(run_folder / "checkpoints")
    if newest is None:
        raise UserError(f"{kept} is missing and {run_folder} has no checkpoint: there are no weights to repeat it with")
    return newest, f"{kept} is missing: with the weights after step {newest.step} instead"


def _table_of_inputs(batch: dict[str, Tensor]) -> Table:
    table = Table("tensor", "shape", "type", "smallest", "largest", "finite", title="the micro-batch")
    for name, x in batch.items():
        low, high = x.double().aminmax() if x.numel() else (torch.zeros(()), torch.zeros(()))
        finite = "yes" if bool(torch.isfinite(x.double()).all()) else "NO"
        shape = "x".join(map(str, x.shape))
        table.add_row(name, shape, str(x.dtype).removeprefix("torch."), f"{low:.4g}", f"{high:.4g}", finite)
    return table
