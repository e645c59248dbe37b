"""Shape annotations of tensor functions are checked in every test, and nowhere else."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("backbones", "data", "engine", "finetune", "pretrain")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "from jaxtyping import" in path.read_text()
]

install_import_hook(SHAPED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
torch.set_flush_denormal(True)
