"""On a GPU: a step of the engine waits for nothing, under DeepSpeed too."""

import contextlib

import pytest
import torch
from torch import nn

from engine.config import DistributedConfig
from engine.distributed.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("kind", "stage"), [("single", 1), ("deepspeed", 1), ("deepspeed", 2)])
def test_step_never_waits_for_the_device(kind, stage, no_waiting):
    engine = Engine(DistributedConfig(engine=kind, zero_stage=stage))
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    engine.prepare(model, optimizer, micro_batches=2, micro_batch_size=8, clip_grad_norm=0.1)
    x = torch.randn(8, 64, device=engine.device)
    for step in range(4):
        with no_waiting() if step > 1 else contextlib.nullcontext():
            for last in (False, True):
                engine.backward(engine.forward(x, last=last).square().mean(), last=last)
            engine.step([0.01])
