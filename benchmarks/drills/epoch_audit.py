"""Is every sample seen exactly as often as promised? ``python benchmarks/drills/epoch_audit.py``.

Real training runs in real processes, over uneven shards (some with one sample or none) of which a few images are
broken, for 3 epochs: killed with SIGKILL at random moments, and each time started again with other numbers of processes
and loader workers. Every process notes the samples of each micro-batch (``report.samples``); the notes are then
counted:

* **lost** and **repeated**: samples that an epoch saw less or more often than promised; both must be 0;
* **skipped**: what did not fill a last global batch; **by repeats**: second and later visits that ``repeats`` asks for;
  **replaced**: places of broken samples that another took; each must be as many as promised, and the ledger of bad
  samples must name each broken one once;
* **differing**: micro-batches that are not those of the order as a pure function, asked without any run.

Three runs: pretraining on one folder, fine-tuning with ``repeats: 3``, pretraining on two folders mixed 0.7 to 0.3.
There the counting is by each source's own passes. ``--short`` has fewer samples and kills.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.config import BackboneConfig
from benchmarks.drills.audited_shards import write_uneven
from benchmarks.drills.killed_run import KilledRun, ProcessLayout
from benchmarks.goals import Goal, finish, machine
from data.config import DataConfig
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from data.shards.shard_set import open_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from engine.terms import MicroBatchKey
from finetune.classification.config import AugmentConfig, ClassifyConfig, ClassifyEvaluationConfig, TaskConfig
from finetune.config import StartConfig
from pretrain.config import MimConfig, PretrainConfig

EPOCHS, BATCH, MICRO_BATCH, NUM_MICRO_BATCHES = 3, 16, 4, 4
WEIGHTS = (0.7, 0.3)
LAYOUTS = tuple(ProcessLayout(processes=p, workers=w) for p, w in [(2, 1), (1, 2), (4, 0), (1, 0), (2, 2), (4, 1)])
COUNTS = ("lost", "repeated", "missing", "differing", "unnamed", "miscounted")


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One run to audit."""

    name: str
    """Of its folder."""
    folders: tuple[Path, ...]
    """Its shards."""
    broken: frozenset[int]
    """Numbers of the samples that do not decode."""
    weights: tuple[float, ...] = ()
    """Of the folders."""
    repeats: int = 1
    """Visits to a sample; more than 1 fine-tunes."""


def main() -> None:
    """Run, kill, count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="103 samples a run and 2 kills instead of 603 and 6")
    parser.add_argument("--seed", type=int, default=None, help="of the kill moments; random if not given")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="epoch-audit-"))
    figures: dict[str, Any] = {"machine": machine(), "epochs": EPOCHS, "kill_seed": seed}
    try:
        for run in plan(folder, num_samples=103 if options.short else 603):
            start = time.monotonic()
            config = config_of(run, folder=folder)
            killed_at = run_and_kill(run, config, num_kills=2 if options.short else 6, rng=rng)
            figures[run.name] = audit(run, config) | {"killed_after_steps": killed_at}
            sys.stdout.write(f"{run.name} in {time.monotonic() - start:.0f} s: {figures[run.name]}\n")
            sys.stdout.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runs = [figures[name] for name in ("plain", "repeats", "mixed")]
    goals = [
        Goal(name=f"samples or micro-batches {name}", value=sum(r.get(name, 0) for r in runs), at_most=0)
        for name in COUNTS
    ]
    goals.append(Goal(name="replaced places", value=min(run["replaced"] for run in runs), at_least=1))
    goals.append(Goal(name="error of a source's share, in samples", value=runs[-1]["share_error"], at_most=1 - 1e-9))
    finish(figures, goals, check=not options.no_goal)


def plan(folder: Path, *, num_samples: int) -> list[Audited]:
    """Write the shards and return the runs."""
    one, other, val = folder / "one", folder / "other", folder / "val"
    broken = write_uneven(one, num_samples=num_samples, num_broken=num_samples // 50, seed=0)
    broken_others = write_uneven(other, num_samples=num_samples // 5 + 3, num_broken=2, seed=1)
    write_uneven(val, num_samples=8, num_broken=0, seed=2)
    both = broken | {num_samples + number for number in broken_others}
    return [
        Audited(name="plain", folders=(one,), broken=broken),
        Audited(name="repeats", folders=(one,), broken=broken, repeats=3),
        Audited(name="mixed", folders=(one, other), broken=both, weights=WEIGHTS),
    ]


def config_of(run: Audited, *, folder: Path) -> PretrainConfig | ClassifyConfig:
    """Write a recipe of a tiny Swin at 32 px."""
    network: dict[str, Any] = {"name": "swin_tiny_patch4_window7_224", "img_size": (32, 32), "window": 1}
    network |= {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    sections: dict[str, Any] = {
        "data": DataConfig(
            shards=tuple(map(str, run.folders)),
            weights=run.weights,
            batch_size=BATCH,
            micro_batch_size=MICRO_BATCH,
            window_shards=2,
            window_samples=16,
            max_bad_share=0.2,
        ),
        "optimizer": OptimizerConfig(base_lr=1e-3, epochs=EPOCHS, warmup_steps=2),
        "run": RunConfig(folder=folder / run.name, save_every_steps=4),
        "report": ReportConfig(every_steps=3, tensorboard=False, samples=True),
        "distributed": DistributedConfig(precision="fp32"),
    }
    if run.repeats == 1:
        mim = MimConfig(mask_ratio=0.5, decoder_dim=8, decoder_heads=2)
        return PretrainConfig(**sections, backbone=BackboneConfig(**network), mim=mim)
    return ClassifyConfig(
        **sections,
        val_shards=str(folder / "val"),
        backbone=StartConfig(**network),
        task=TaskConfig(repeats=run.repeats),
        augment=AugmentConfig(rand_augment=None),
        evaluation=ClassifyEvaluationConfig(every_steps=10**6, micro_batch_size=4),
    )


def run_and_kill(
    run: Audited, config: PretrainConfig | ClassifyConfig, *, num_kills: int, rng: random.Random
) -> list[int]:
    """Train to the end through ``num_kills`` kills, each time on another layout; return the steps they came after."""
    training = KilledRun("pretrain.trainer" if run.repeats == 1 else "finetune.train", config)
    last_step = EPOCHS * order_of(run, config).steps_per_epoch
    first = rng.randrange(len(LAYOUTS))
    killed_at: list[int] = []
    for kill in range(num_kills):
        training.start(LAYOUTS[(first + kill) % len(LAYOUTS)])
        aimed = (kill + 1) * last_step // (num_kills + 1)
        killed_at.append(training.kill_after(rng.randint(aimed - 2, aimed), rng=rng))
    training.start(LAYOUTS[(first + num_kills) % len(LAYOUTS)])
    training.wait_done()
    return killed_at


def order_of(run: Audited, config: PretrainConfig | ClassifyConfig) -> TrainingOrder:
    """The order as a pure function, without a run."""
    return training_order(config.data, open_shards(config.data.shards), seed=config.run.seed, repeats=run.repeats)


def audit(run: Audited, config: PretrainConfig | ClassifyConfig) -> dict[str, Any]:
    """Count what the run's notes say."""
    order, notes = order_of(run, config), Notes(config.run.folder)
    steps = EPOCHS * order.steps_per_epoch
    keys = [(step, number) for step in range(steps) for number in range(NUM_MICRO_BATCHES)]
    sizes = open_shards(config.data.shards).sizes
    starts = np.cumsum(sizes) - sizes
    differing = 0
    for key in keys:
        rows = order.micro_batch(*key)
        expected = (starts[rows[:, 0]] + rows[:, 1]).tolist()
        differing += expected != notes.visits.get(key)
    figures: dict[str, Any] = {"samples": sum(sizes), "steps": steps, "done_again": notes.done_again}
    figures |= {"missing": sum(key not in notes.visits for key in keys), "differing": differing}
    figures |= count_sources(run, notes, keys) if run.weights else count_epochs(run, notes, keys)
    figures |= check_ledger(run, notes, config.run.folder)
    return figures


class Notes:
    """What the processes of a run noted of its micro-batches, over all starts."""

    def __init__(self, folder: Path) -> None:
        self.visits: dict[MicroBatchKey, list[int]] = {}
        """Samples whose turn it was, broken ones included, by (step, micro_batch)."""
        self.bad: dict[MicroBatchKey, list[int]] = {}
        """Those of them that were replaced."""
        self.unnoticed = 0
        """Places of which the notes do not say whose turn it was."""
        self.done_again = 0
        lines: dict[MicroBatchKey, str] = {}
        for path in sorted(folder.glob("samples-*.jsonl")):
            for text in path.read_text().splitlines():
                if text.endswith("}"):  # else cut off by a kill
                    self._read(text, lines)

    def _read(self, text: str, lines: dict[MicroBatchKey, str]) -> None:
        line = json.loads(text)
        key = (line["step"], line["micro_batch"])
        if key in lines:
            self.done_again += 1
            if lines[key] != text:
                sys.exit(f"step {key[0]}, micro-batch {key[1]} was made of other samples when it was done again")
        lines[key] = text
        self.bad[key] = [number for number, _, _ in line["bad"]]
        replaced = iter(self.bad[key])
        places = zip(line["ids"], line["repeats"], strict=True)
        self.visits[key] = [number if repeat >= 0 else next(replaced) for number, repeat in places]


def count_epochs(run: Audited, notes: Notes, keys: Sequence[MicroBatchKey]) -> dict[str, int]:
    """Count each epoch's visits to each sample against what one data set's epochs promise."""
    sizes = open_shards(*run.folders).sizes
    per_epoch = len(keys) // EPOCHS
    places = per_epoch // NUM_MICRO_BATCHES * MICRO_BATCH
    promised = NUM_MICRO_BATCHES * -(-places // run.repeats)
    figures = dict.fromkeys(("lost", "repeated", "skipped", "by_repeats"), 0)
    for epoch in range(EPOCHS):
        epoch_keys = keys[epoch * per_epoch : (epoch + 1) * per_epoch]
        counts = Counter(number for key in epoch_keys for number in notes.visits.get(key, ()))
        figures["lost"] += max(0, promised - len(counts))
        figures["repeated"] += sum(max(0, count - run.repeats) for count in counts.values())
        figures["skipped"] += sum(sizes) - len(counts)
        figures["by_repeats"] += counts.total() - len(counts)
    expected_skips, expected_repeats = sum(sizes) - promised, per_epoch * MICRO_BATCH - promised
    miscounted = (figures["skipped"] != EPOCHS * expected_skips) + (figures["by_repeats"] != EPOCHS * expected_repeats)
    return {**figures, "miscounted": miscounted}


def count_sources(run: Audited, notes: Notes, keys: Sequence[MicroBatchKey]) -> dict[str, Any]:
    """Count each source's visits against its share and its passes, over the whole run.

    Where two passes meet, a micro-batch holds samples of both, so what exactly a pass left out cannot be counted.
    """
    sizes = [open_shards(folder).num_samples for folder in run.folders]
    ends, total = np.cumsum(sizes), sum(run.weights)
    figures: dict[str, Any] = dict.fromkeys(("lost", "repeated", "skipped"), 0)
    share_error = 0.0
    for source, size in enumerate(sizes):
        first, last = int(ends[source]) - size, int(ends[source])
        mine = {key: [n for n in notes.visits.get(key, ()) if first <= n < last] for key in keys}
        for number in range(NUM_MICRO_BATCHES):
            seen = np.cumsum([len(mine[key]) for key in keys if key[1] == number])
            dealt = np.arange(1, len(seen) + 1) * MICRO_BATCH
            share_error = max(share_error, float(np.abs(seen - run.weights[source] / total * dealt).max()))
        counts = Counter(dict.fromkeys(range(first, last), 0))
        counts.update(n for samples in mine.values() for n in samples)
        per_pass = size // NUM_MICRO_BATCHES * NUM_MICRO_BATCHES
        passes, rest = divmod(counts.total(), per_pass)
        short = sum(max(0, passes - count) for count in counts.values())
        figures["repeated"] += sum(max(0, count - passes - (rest > 0)) for count in counts.values())
        figures["skipped"] += short
        figures["lost"] += max(0, short - passes * (size - per_pass))
        figures[f"passes_of_source_{source + 1}"] = counts.total() / per_pass
    return {**figures, "share_error": share_error}


def check_ledger(run: Audited, notes: Notes, folder: Path) -> dict[str, int]:
    """Compare the ledger of bad samples and the metrics with what the notes say was replaced."""
    ledger = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first: dict[int, tuple[int, int]] = {}
    for key in sorted(notes.bad):
        for number in notes.bad[key]:
            first.setdefault(number, key)
    visited = {number for samples in notes.visits.values() for number in samples}
    named = {line["id"]: (line["step"], line["micro_batch"]) for line in ledger}
    wrong = {n for n in named.keys() | first.keys() if named.get(n) != first.get(n)} | (
        set(first) ^ run.broken & visited
    )
    replaced = sum(map(len, notes.bad.values()))
    counted = sum(line["bad_samples"] for line in metrics)
    unnamed = len(wrong) + len(ledger) - len(named) + int(counted != replaced)
    return {"replaced": replaced, "broken_named": len(named), "unnamed": unnamed}


if __name__ == "__main__":
    main()
