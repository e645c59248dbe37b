"""On a GPU with fp8: products near those of bf16 for any number of rows, and no synchronisation."""

import importlib.util

import pytest
import torch
from torch import nn

from engine.config import DistributedConfig
from engine.distributed.engine import Engine
from engine.distributed.float8 import CAPABILITY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY, reason="this GPU has no fp8"
    ),
    pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="the fp8 extra is not installed"),
    pytest.mark.filterwarnings("ignore:torch.get_autocast_gpu_dtype:DeprecationWarning"),  # torchao's
]


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"fc1": nn.Linear(96, 384), "fc2": nn.Linear(384, 96)}) for _ in range(3)]
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block["fc2"](nn.functional.gelu(block["fc1"](x)))
        return x.square().mean()


def prepared(*, fp8):
    engine = Engine(DistributedConfig(engine="single", fp8=fp8))
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    engine.prepare(model, optimizer, micro_batches=1, micro_batch_size=1, clip_grad_norm=None)
    return engine, model


def loss_and_gradient(engine, model, x):
    model.zero_grad(set_to_none=True)
    loss = engine.forward(x)
    engine.backward(loss, last=True)
    return loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("rows", [1, 13, 768, 4099])
def test_loss_and_gradients_are_near_those_of_bf16_whatever_the_number_of_rows(rows):
    x = torch.randn(rows, 96, device="cuda", generator=torch.Generator("cuda").manual_seed(rows))
    loss, gradient = loss_and_gradient(*prepared(fp8=False), x)
    fp8_loss, fp8_gradient = loss_and_gradient(*prepared(fp8=True), x)
    assert fp8_loss.item() == pytest.approx(loss.item(), rel=0.02)
    assert 0 < (gradient - fp8_gradient).norm() / gradient.norm() < 0.1


def test_a_step_never_waits_for_the_device(no_waiting):
    engine, model = prepared(fp8=True)
    x = torch.randn(13, 96, device="cuda")
    loss_and_gradient(engine, model, x)
    engine.step([0.01])
    torch.cuda.synchronize()
    with no_waiting():
        loss_and_gradient(engine, model, x)
        engine.step([0.01])
