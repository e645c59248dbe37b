"""The average of the weights."""

import pytest
import torch
from torch import nn

from engine.config import DistributedConfig
from engine.distributed.engine import Engine
from engine.loop.ema import SlicedEma


@pytest.fixture
def engine():
    torch.manual_seed(0)
    engine = Engine(DistributedConfig(engine="single", precision="fp32"))
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine.prepare(model, optimizer, micro_batches=1, micro_batch_size=4, clip_grad_norm=None)
    return engine


def take_step(engine: Engine):
    engine.backward(engine.forward(torch.ones(4, 3)).square().sum(), last=True)
    engine.step([0.1])


def test_average_follows_the_weights(engine):
    expected = engine.module.weight.detach().clone()
    ema = SlicedEma(engine, decay=0.75)
    for _ in range(3):
        take_step(engine)
        ema.update()
        expected = 0.75 * expected + 0.25 * engine.module.weight.detach()
    with ema.swap():
        torch.testing.assert_close(engine.module.weight.detach(), expected)
        torch.testing.assert_close(engine.full_state_dict()["weight"], expected)


def test_swap_restores_the_exact_weights_after_an_error(engine):
    ema = SlicedEma(engine, decay=0.5)
    take_step(engine)
    before = engine.full_state_dict()

    def fail():
        assert not torch.equal(engine.module.weight, before["weight"])
        raise RuntimeError

    with pytest.raises(RuntimeError), ema.swap():
        fail()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.full_state_dict().items())


def test_saved_average_loads_exactly(engine):
    ema = SlicedEma(engine, decay=0.5)
    take_step(engine)
    ema.update()
    saved = {s.name: s.values.clone() for s in ema.slices()}
    assert {s.kind for s in ema.slices()} == {"ema"}
    take_step(engine)
    ema.update()
    ema.load(lambda kind, name, offset, length: saved[name][offset : offset + length])
    assert all(torch.equal(s.values, saved[s.name]) for s in ema.slices())
