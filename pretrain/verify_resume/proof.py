"""Proves on the user's own machine that a run which is killed and started again ends as one that is left alone.

    runs/verify-resume/
    ├── whole/        N steps without a break
    ├── resumed/      N/2 steps, SIGKILL to every process, and the rest
    └── moved/        the same, the rest on another number of processes

Each is a start of the whole program under the launcher, so what is proved holds for what trains.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from engine.config import micro_batches_of
from engine.errors import UserError
from engine.extensions import extension_arguments, loaded_extensions
from engine.recipe import dump
from pretrain.config import PretrainConfig
from pretrain.verify_resume.launched_run import LaunchedRun, ProcessLayout, final_tensors, noted_micro_batches

MOVED_BOUND = 1e-4
"""Largest difference of a weight that another order of sums makes in so few steps; relative where weights exceed 1."""
TIME_LIMIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How the runs compare."""

    steps: int
    """N."""
    killed_after: int
    """The last step that was noted before the kill."""
    deterministic: bool
    """Whether kernels were deterministic: always on a CPU, on GPUs with `distributed.deterministic`."""
    layout: ProcessLayout
    """Of the whole run and of the resumed one."""
    moved_layout: ProcessLayout
    """Of the second half of the moved one."""
    num_tensors: int
    """Weights, moments, averages and buffers."""
    num_micro_batches: int
    """In N steps."""
    resumed_tensors_differing: int
    """Of the resumed run, not bit-identical to the whole one's."""
    resumed_micro_batches_differing: int
    """Of the resumed run, made of other samples, crops or masks."""
    moved_difference: float
    """Largest difference of a weight of the moved run; in a tensor whose largest exceeds 1, relative to that."""
    moved_micro_batches_differing: int
    """Of the moved run."""

    @property
    def proved(self) -> bool:
        """Whether all is as promised; without deterministic kernels bits are not."""
        same_samples = not (self.resumed_micro_batches_differing or self.moved_micro_batches_differing)
        same_bits = not (self.deterministic and self.resumed_tensors_differing)
        return same_samples and same_bits and self.moved_difference <= MOVED_BOUND

    def table(self) -> Table:
        """Show the evidence on a terminal."""
        mode = "deterministic kernels" if self.deterministic else "kernels that are not deterministic"
        table = Table(
            "what", "found", "promised", title=f"resume, with {mode}: {'proved' if self.proved else 'NOT PROVED'}"
        )
        table.add_row("steps", f"{self.steps}, SIGKILL after step {self.killed_after}", "")
        table.add_row(
            f"tensors that differ, {self.layout}",
            f"{self.resumed_tensors_differing} of {self.num_tensors}",
            "0 (bit for bit)" if self.deterministic else "not without --distributed.deterministic True",
        )
        table.add_row(
            "micro-batches of other samples, crops or masks",
            f"{self.resumed_micro_batches_differing} of {self.num_micro_batches}",
            "0",
        )
        table.add_row(
            f"moved to {self.moved_layout}: largest difference of a weight",
            f"{self.moved_difference:.1e}",
            f"at most {MOVED_BOUND:g} (rounding)",
        )
        table.add_row(
            "micro-batches of other samples, moved",
            f"{self.moved_micro_batches_differing} of {self.num_micro_batches}",
            "0",
        )
        return table


def verify_resume(
    config: PretrainConfig, *, steps: int, processes: int | None = None, moved_processes: int | None = None
) -> Evidence:
    """Run the proof: ``steps`` whole, killed half-way, and gone on with on other processes.

    Raises:
        UserError: the recipe or the numbers do not fit, or a run failed.
    """
    first = _layout(config, processes or torch.cuda.device_count() or 2)
    return _Proof(config, steps=steps, layouts=(first, _moved_layout(config, first, moved_processes))).run()


def _layout(config: PretrainConfig, processes: int) -> ProcessLayout:
    """Lay the recipe out on so many processes, among which its micro-batches must divide."""
    batch_size, micro_batch_size = config.data.batch_size, config.data.micro_batch_size
    micro_batches_of(0, world_size=processes, batch_size=batch_size, micro_batch_size=micro_batch_size)
    engine = config.distributed.engine if config.distributed.engine != "auto" else "deepspeed"
    stage = config.distributed.zero_stage
    return ProcessLayout(processes=processes, engine=engine, zero_stage=stage, workers=config.data.workers)


def _moved_layout(config: PretrainConfig, first: ProcessLayout, processes: int | None) -> ProcessLayout:
    """Choose where the moved run goes: to other processes, or where one GPU is all there is, to another engine."""
    if processes is None and first.processes == torch.cuda.device_count() == 1:
        return dataclasses.replace(first, engine="ddp" if first.engine == "single" else "single")
    return _layout(config, processes or _other_number(config, first.processes))


class _Proof:
    """The runs of one proof, in folders under the recipe's run folder."""

    def __init__(self, config: PretrainConfig, *, steps: int, layouts: tuple[ProcessLayout, ProcessLayout]) -> None:
        self._folder, self._steps, self._layouts = config.run.folder, steps, layouts
        if self._folder.exists() and any(self._folder.iterdir()):
            raise UserError(f"{self._folder} is not empty; choose another --run.folder for the proof, or remove it")
        self._deterministic = config.distributed.deterministic or not torch.cuda.is_available()
        self._config = dataclasses.replace(
            config,
            optimizer=dataclasses.replace(config.optimizer, steps=steps, warmup_steps=min(1, steps)),
            run=dataclasses.replace(config.run, save_every_steps=max(1, steps // 4), keep_last=2),
            report=dataclasses.replace(config.report, every_steps=1, samples=True, wandb_project=None),
            probe=dataclasses.replace(config.probe, every_steps=None),
        )

    def run(self) -> Evidence:
        """Run all three and compare."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "recipe.yaml").write_text(dump(self._config))
        first, other = self._layouts
        whole, resumed, moved = (self._folder / name for name in ("whole", "resumed", "moved"))
        self._start(whole, first).wait_done()
        running = self._start(resumed, first)
        # Killed where the next checkpoint is still to come: some steps are done again.
        running.until(lambda: running.last_step() >= self._steps // 2 and (resumed / "checkpoints").exists())
        killed_after = running.kill_all()
        if killed_after >= self._steps - 1:
            raise UserError(f"the run had ended when it was to be killed; take more --steps than {self._steps}")
        shutil.copytree(resumed, moved)
        self._start(resumed, first).wait_done()
        self._start(moved, other).wait_done()
        return self._compare(whole, resumed=resumed, moved=moved, killed_after=killed_after)

    def _compare(self, whole: Path, *, resumed: Path, moved: Path, killed_after: int) -> Evidence:
        of_whole, of_resumed, of_moved = (final_tensors(folder, step=self._steps) for folder in (whole, resumed, moved))
        expected, in_resumed, in_moved = (noted_micro_batches(folder) for folder in (whole, resumed, moved))
        return Evidence(
            steps=self._steps,
            killed_after=killed_after,
            deterministic=self._deterministic,
            layout=self._layouts[0],
            moved_layout=self._layouts[1],
            num_tensors=len(of_whole),
            num_micro_batches=len(expected),
            resumed_tensors_differing=sum(
                key not in of_resumed or not torch.equal(x, of_resumed[key]) for key, x in of_whole.items()
            ),
            resumed_micro_batches_differing=sum(in_resumed.get(key) != content for key, content in expected.items()),
            moved_difference=max(_difference(x, of_moved[key]) for key, x in of_whole.items() if key[0] == "weight"),
            moved_micro_batches_differing=sum(in_moved.get(key) != content for key, content in expected.items()),
        )

    def _start(self, folder: Path, layout: ProcessLayout) -> LaunchedRun:
        arguments = [*extension_arguments(loaded_extensions()), "--recipe", str(self._folder / "recipe.yaml")]
        return LaunchedRun(folder, layout=layout, arguments=arguments, time_limit_s=TIME_LIMIT_S)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Measure the largest difference of two tensors, over the largest element if that exceeds 1."""
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1.0))


def _other_number(config: PretrainConfig, processes: int) -> int:
    """Choose the next smaller number of processes that divides the micro-batches, else the next larger one."""
    num = config.data.batch_size // config.data.micro_batch_size
    fitting = [count for count in range(1, num + 1) if num % count == 0 and count != processes]
    if not fitting:
        raise UserError(
            f"there is one micro-batch a step, so no other number of processes; halve data.micro-batch-size "
            f"{config.data.micro_batch_size}"
        )
    return max((count for count in fitting if count < processes), default=fitting[0])
