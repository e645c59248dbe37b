"""How large this code is and how far a newcomer has to look, for two checkouts beside each other.

``python benchmarks/tables/code_measures.py BEFORE AFTER`` prints a table: lines, docstrings that open with "Return",
lines of over 120 characters, parameters that nothing reads, entries of the fullest folder, modules that help and a
loader's worker import, and the files of ours whose code runs for a micro-batch on its way from the shard to the update.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("backbones", "data", "engine", "finetune", "launch", "pretrain")
LONGEST_LINE = 120
DATA = ("recipes", "results", "clusters")
"""Folders of recipes and records, which are no source."""

MODULES = """
import json, runpy, sys
sys.argv = [{program!r}, *{arguments!r}]
try:
    runpy.run_path({program!r}, run_name="__main__")
except SystemExit:
    pass
print("\\n" + json.dumps(sorted(sys.modules)))
"""
WORKER = """
import importlib, json, sys
try:
    importlib.import_module("pretrain.batches.micro_batch")
except ModuleNotFoundError:  # its place before December 2026
    importlib.import_module("pretrain.micro_batch")
print("\\n" + json.dumps(sorted(sys.modules)))
"""
PATH_OF_AN_IMAGE = """
import json, sys
from engine.recipe import parse
from pretrain.config import PretrainConfig
from pretrain.trainer import train
files, active = set(), [False]
def watch(frame, event, _):
    name, file = frame.f_code.co_name, frame.f_code.co_filename
    if name in ("fetch", "update") and file.endswith("training.py") and event in ("call", "return"):
        active[0] = (name, event) != ("update", "return")
    if active[0]:
        files.add(file)
config = parse(PretrainConfig, {arguments!r})
sys.setprofile(watch)
train(config)
sys.setprofile(None)
print("\\n" + json.dumps(sorted(files)))
"""
RUN = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 2, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}
data: {batch_size: 8, micro_batch_size: 4, workers: 0}
mim: {mask_ratio: 0.5, decoder_dim: 32, decoder_heads: 2}
optimizer: {steps: 2, warmup_steps: 1}
report: {tensorboard: false}
distributed: {precision: fp32}
"""


def main() -> None:
    """Measure the checkouts and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts")
    trees = [tree.resolve() for tree in parser.parse_args().trees]
    columns = [measures(tree) for tree in trees]
    sys.stdout.write(f"| measure | {' | '.join(tree.name for tree in trees)} |\n|---{'|---' * len(trees)}|\n")
    for name in columns[0]:
        sys.stdout.write(f"| {name} | {' | '.join(column[name] for column in columns)} |\n")


def measures(tree: Path) -> dict[str, str]:
    """Measure one checkout."""
    source = sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))
    text = tracked(tree)
    returns, docstrings = docstrings_of(source)
    fullest, entries = fullest_folder(tree)
    figures = {
        "lines of source": f"{sum(map(count_lines, source)):,}",
        "files of source": str(len(source)),
        "docstrings that open with Return": f"{returns} of {docstrings} ({returns / docstrings:.0%})",
        f"lines of over {LONGEST_LINE} characters in .py": str(
            sum(map(count_long, (p for p in text if p.suffix == ".py")))
        ),
        f"lines of over {LONGEST_LINE} characters in .md, tables aside": str(
            sum(count_long(path, tables=False) for path in text if path.suffix == ".md")
        ),
        "parameters that nothing reads": str(dead_parameters(tree)),
        "entries of the fullest folder of source": f"{entries} ({fullest})",
    }
    for program in ("pretrain", "finetune", "data", "backbones", "launch"):
        script = MODULES.format(program=f"{program}/main.py", arguments=["--help"])
        figures[f"modules that {program}/main.py --help imports"] = describe(modules(tree, script))
    figures["modules that a loader's worker needs"] = describe(modules(tree, WORKER))
    files = image_path(tree)
    figures["files of ours from shard to update"] = str(len(files))
    return figures


def tracked(tree: Path) -> list[Path]:
    """List the files that git tracks."""
    done = subprocess.run(["git", "ls-files"], cwd=tree, check=True, capture_output=True, text=True)
    return [tree / name for name in done.stdout.splitlines()]


def count_lines(path: Path) -> int:
    """Count the lines of a file."""
    return len(path.read_text().splitlines())


def count_long(path: Path, *, tables: bool = True) -> int:
    """Count the lines that are too long; those of Markdown tables on request."""
    lines = path.read_text().splitlines()
    return sum(len(line) > LONGEST_LINE and (tables or not line.lstrip().startswith("|")) for line in lines)


def docstrings_of(paths: list[Path]) -> tuple[int, int]:
    """Count docstrings that open with Return, and all."""
    texts = [text for path in paths for text in _docstrings(ast.parse(path.read_text()))]
    return sum(text.startswith("Return") for text in texts), len(texts)


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def dead_parameters(tree: Path) -> int:
    """Count arguments that nothing reads, by ruff's rules for them; those with a leading underscore are meant so."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "ARG", "--output-format", "json"]
    done = subprocess.run([*command, *PACKAGES], cwd=tree, capture_output=True, text=True)
    return len(json.loads(done.stdout))


def fullest_folder(tree: Path) -> tuple[str, int]:
    """Find the folder of source with the most entries, folders included."""
    names = {path.relative_to(tree) for path in tracked(tree) if path.suffix in (".py", ".yaml")}
    entries: dict[Path, set[str]] = {}
    for name in names:
        if name.parts[0] in PACKAGES and not set(name.parts) & set(DATA):
            for depth in range(1, len(name.parts)):
                entries.setdefault(Path(*name.parts[:depth]), set()).add(name.parts[depth])
    folder = max(entries, key=lambda folder: len(entries[folder]))
    return str(folder), len(entries[folder])


def modules(tree: Path, script: str) -> list[str]:
    """Run a script in a tree that prints, last, the modules it has imported."""
    return json.loads(run(tree, [sys.executable, "-c", script]).splitlines()[-1])


def describe(names: list[str]) -> str:
    """Count modules, and name the heavy ones among them."""
    ours = sum(name.split(".")[0] in PACKAGES for name in names)
    heavy = [name for name in ("torch", "timm", "numpy") if name in names]
    return f"{len(names)} ({ours} ours{', with ' + ', '.join(heavy) if heavy else ''})"


def image_path(tree: Path) -> list[str]:
    """Pretrain for two steps and list our files whose code runs between fetching a micro-batch and updating weights."""
    with tempfile.TemporaryDirectory() as folder:
        shards, recipe = Path(folder) / "shards", Path(folder) / "recipe.yaml"
        write = ["write", "--source", "scenes", "--count", "16", "--size", "64", "--out", str(shards)]
        run(tree, [sys.executable, "data/main.py", *write])
        recipe.write_text(RUN)
        arguments = ["--recipe", str(recipe), "--data.shards", str(shards), "--run.folder", f"{folder}/run"]
        files = modules(tree, PATH_OF_AN_IMAGE.format(arguments=arguments))
    return [file for file in files if file.startswith(tuple(str(tree / package) for package in PACKAGES))]


def run(tree: Path, command: list[str]) -> str:
    """Run a command in a tree and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
