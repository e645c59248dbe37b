"""Do two versions of this project compute the same bits? Runs of 20 steps, whole and resumed, as digests.

    python benchmarks/drills/same_bits.py --tree OLD --out before
    python benchmarks/drills/same_bits.py --tree . --out after --against before

The second command compares two things with what the first left: the same runs from the start, and runs that go on from
the checkpoints that the first tree wrote half-way. Every tensor of the last checkpoint goes into a digest (weights,
moments, averages, buffers). Bits are comparable on one machine with one set of libraries only.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
STEPS, HALF = 20, 10
TIME_LIMIT_S = 900
SCHEDULE = f"""
optimizer: {{base_lr: 4.0e-3, lr_batch_size: 16, steps: {STEPS}, warmup_steps: 2, clip_grad_norm: 1.0, ema_decay: 0.9}}
run: {{save_every_steps: {HALF}, keep_last: 2}}
report: {{every_steps: 1, samples: true, tensorboard: false}}
distributed: {{precision: fp32}}
"""
SWIN = """backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 4, embed_dim: 16,
           depths: [1, 2, 1, 1], num_heads: [1, 2, 4, 8], drop_path: 0.1}
"""
SECVIT = """backbone: {name: secvit_tiny, img_size: [64, 64], embed_dim: 16, depths: [1, 1, 1, 1],
           num_heads: [1, 2, 4, 8]}
"""
PRETRAIN = """data: {batch_size: 16, micro_batch_size: 4, workers: 1}
mim: {mask_ratio: 0.5, decoder_dim: 32, decoder_heads: 2}
"""
CLASSIFY = """augment: {rand_augment: null}  # before December 2026 a published strength of it fails under Pillow 13
data: {batch_size: 16, micro_batch_size: 4, workers: 1}
evaluation: {every_steps: 10, micro_batch_size: 4}
"""
DETECT = """detector: {kind: mask_rcnn, width: 16, box_width: 32, roi_samples: 16, anchor_samples: 32,
           proposals: [50, 20], score_threshold: 0.0}
resize: {short_sides: [64, 80], long_side: 128, test_short_side: 64}
data: {batch_size: 4, micro_batch_size: 2, workers: 1}
evaluation: {every_steps: 10, micro_batch_size: 2}
"""
SEGMENT = """segmenter: {head: segvit, dim: 16, num_heads: 2, strides: [4, 8]}
data: {batch_size: 4, micro_batch_size: 2, workers: 1}
augment: {crop: [64, 64], short_side: 80}
labels: {num_classes: 13}
inference: {short_side: 64}
evaluation: {every_steps: 10, micro_batch_size: 2}
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a program, its recipe, its number of processes (two run under DeepSpeed), and its shards."""

    program: str
    recipe: str
    processes: int = 1
    shards: str = "scenes"


CASES = {
    "pretrain_swin": Case(program="pretrain", recipe=SWIN + PRETRAIN),
    "pretrain_swin_two": Case(program="pretrain", recipe=SWIN + PRETRAIN, processes=2),
    "pretrain_secvit": Case(program="pretrain", recipe=SECVIT + PRETRAIN),
    "pretrain_secvit_two": Case(program="pretrain", recipe=SECVIT + PRETRAIN, processes=2),
    "classify": Case(program="finetune", recipe=SWIN + CLASSIFY),
    "detect": Case(program="finetune", recipe=SWIN + DETECT),
    "segment": Case(program="finetune", recipe=SWIN + SEGMENT),
}


def main() -> None:
    """Run what the command line asks for; exit code 1 where a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose programs run")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and digests")
    parser.add_argument("--against", type=Path, help="the folder that another tree's runs are in")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    options = parser.parse_args()
    out, tree = options.out.resolve(), options.tree.resolve()
    out.mkdir(parents=True, exist_ok=True)
    before = options.against.resolve() if options.against else None
    shards = (before or out) / "shards"
    if not shards.is_dir():
        write_shards(tree, shards)
    digests = {name: whole(tree, out, shards, name=name) for name in options.cases}
    if before:
        digests |= {f"{name}, resumed": resumed(tree, out, shards, before, name=name) for name in options.cases}
    (out / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")
    expected = json.loads((before or out).joinpath("digests.json").read_text())
    differing = 0
    for name, digest in digests.items():
        same = digest == expected[name.removesuffix(", resumed")]
        differing += not same
        sys.stdout.write(f"{name:32} {digest[:16]} {'' if before is None else 'same' if same else 'DIFFERS'}\n")
    sys.stdout.write(f"{differing} of {len(digests)} differ\n")
    sys.exit(1 if differing else 0)


def write_shards(tree: Path, out: Path) -> None:
    """Write scenes with classes, boxes and label maps by the tree's own program."""
    options = ["write", "--source", "scenes", "--count", "72", "--size", "64", "--val-fraction", "0.12"]
    run(tree, [sys.executable, "data/main.py", *options, "--out", str(out)])


def whole(tree: Path, out: Path, shards: Path, *, name: str) -> str:
    """Run a case from its start to its end; return the digest of its last checkpoint."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    return train(tree, folder, shards, case=CASES[name])


def resumed(tree: Path, out: Path, shards: Path, before: Path, *, name: str) -> str:
    """Go on from the checkpoint that the other tree wrote half-way, to the end."""
    folder = out / f"{name}_resumed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before / name, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:09d}")
    return train(tree, folder, shards, case=CASES[name])


def train(tree: Path, folder: Path, shards: Path, *, case: Case) -> str:
    """Start the program as a user does, and digest what it leaves."""
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(case.recipe + SCHEDULE)
    options = ["--recipe", str(recipe), "--data.shards", str(shards / "train"), "--run.folder", str(folder)]
    if case.program == "finetune":
        options += ["--val-shards", str(shards / "val")]
    start = [sys.executable]
    if case.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        start += ["-m", "accelerate.commands.accelerate_cli", "launch"]
        start += ["--config_file", "pretrain/cpu_two_processes.yaml", "--main_process_port", port]
    run(tree, [*start, f"{case.program}/main.py", *options])
    return digest(folder / "checkpoints" / f"step-{STEPS:09d}")


def run(tree: Path, command: list[str]) -> None:
    """Run a command in a tree, quietly unless it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, timeout=TIME_LIMIT_S, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def digest(checkpoint: Path) -> str:
    """Hash every tensor's key and bytes (sha256), whatever the files are called and however they are sliced."""
    total = hashlib.sha256()
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                tensor = file.get_tensor(key)
                total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.contiguous().flatten().numpy().tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
