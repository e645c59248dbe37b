"""Shape annotations of tensor functions are checked in every test, and nowhere else."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

SHAPED = (
    "backbones.convnext",
    "backbones.faster_vit",
    "backbones.positions",
    "backbones.sec_attention",
    "backbones.sec_network",
    "backbones.sec_stage",
    "backbones.sec_swin",
    "backbones.sec_visible",
    "backbones.secvit",
    "backbones.submanifold",
    "backbones.token_grid",
    "backbones.twins",
    "backbones.vit",
    "backbones.window_attention",
    "backbones.xfa",
    "backbones.xformer",
    "backbones.xformer_visible",
    "engine.probes",
    "pretrain.decoder",
    "pretrain.greenmim",
    "pretrain.targets",
)

install_import_hook(SHAPED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
torch.set_flush_denormal(True)
