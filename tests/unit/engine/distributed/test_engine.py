"""One process: the engine's interface and arithmetic. Several: ``tests/integration/test_distributed.py``."""

import logging
from collections import Counter
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.config import DistributedConfig
from engine.distributed.deepspeed_zero import zero_config
from engine.distributed.engine import Engine
from engine.distributed.sharding import share_evenly

EPS = 1e-3  # a bias before BatchNorm has no gradient but rounding, which a small epsilon would blow up to whole steps


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.last = nn.Linear(4, 2)
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, x, *, gain=None):
        y = self.last(self.norm(self.first(x)).tanh())
        return {"y": y if gain is None else y * gain, "kept": x}


def groups_of(model):
    return [
        {"params": [p for p in model.parameters() if p.requires_grad and p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.requires_grad and p.ndim == 1], "weight_decay": 0.0},
    ]


def prepared(*, precision: Literal["bf16", "fp32", "fp64"] = "fp32", clip=None, micro_batches=2, seed=0, model=None):
    engine = Engine(DistributedConfig(engine="single", precision=precision))
    model = Model(seed) if model is None else model
    optimizer = torch.optim.AdamW(groups_of(model), lr=1.0, eps=EPS)
    engine.prepare(model, optimizer, micro_batches=micro_batches, micro_batch_size=6, clip_grad_norm=clip)
    return engine


def inputs(step, count=2):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(6, 5, generator=generator) for _ in range(count)]


def run_steps(engine, steps):
    norms = []
    for step in steps:
        for index, x in enumerate(inputs(step)):
            engine.backward(engine.forward(x, last=index == 1)["y"].square().mean(), last=index == 1)
        norms.append(float(engine.step([0.01 * (step + 1), 0.02])))
    return norms


@pytest.mark.parametrize("clip", [None, 0.05])
def test_step_is_the_clipped_mean_gradient_through_the_given_optimizer(clip):
    engine, reference = prepared(clip=clip), Model()
    optimizer = torch.optim.AdamW(groups_of(reference), lr=1.0, eps=EPS)
    expected_norms = []
    for step in range(3):
        torch.stack([reference(x)["y"].square().mean() for x in inputs(step)]).mean().backward()
        trained = [p for p in reference.parameters() if p.requires_grad]
        expected_norms.append(float(nn.utils.clip_grad_norm_(trained, float("inf") if clip is None else clip)))
        for group, lr in zip(optimizer.param_groups, [0.01 * (step + 1), 0.02], strict=True):
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    assert run_steps(engine, range(3)) == pytest.approx(expected_norms, rel=1e-6)
    assert clip is None or min(expected_norms) > clip
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(engine.module.get_parameter(name), parameter)


def test_resumed_run_equals_uninterrupted_one():
    uninterrupted, first = prepared(clip=0.05), prepared(clip=0.05)
    run_steps(uninterrupted, range(4))
    run_steps(first, range(2))
    slices = {(s.kind, s.name): s.values.clone().view(s.shape) for s in first.state_slices()}
    model = Model(seed=9)
    model.load_state_dict({name: x for (kind, name), x in slices.items() if kind in ("weight", "buffer")})
    resumed = prepared(clip=0.05, model=model)
    resumed.load_optimizer(
        lambda kind, name, offset, length: slices[kind, name].flatten()[offset : offset + length], optimizer_steps=2
    )
    run_steps(resumed, range(2, 4))
    for name, tensor in uninterrupted.full_state_dict().items():
        assert torch.equal(tensor, resumed.full_state_dict()[name]), name


def test_owned_slices_name_everything_that_is_saved():
    slices = prepared().state_slices()
    names = {kind: {s.name for s in slices if s.kind == kind} for kind in ("weight", "exp_avg", "exp_avg_sq", "buffer")}
    model = Model()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names["weight"] == trained | {"frozen"}
    assert names["exp_avg"] == names["exp_avg_sq"] == trained
    assert names["buffer"] == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert all(s.values.ndim == 1 for s in slices)
    assert set(prepared().full_state_dict()) == set(model.state_dict())


@given(sizes=st.lists(st.integers(0, 40), max_size=6), world_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_shares_hold_each_element_exactly_once(sizes, world_size):
    parameters = [(f"p{i}", nn.Parameter(torch.arange(float(size)))) for i, size in enumerate(sizes)]
    seen = Counter()
    shares = [share_evenly(iter(parameters), {}, rank=rank, world_size=world_size) for rank in range(world_size)]
    for run in (run for share in shares for run in share):
        assert torch.equal(run.weight, torch.arange(run.offset, run.offset + len(run.weight)).float())
        seen.update((run.name, int(element)) for element in run.weight)
    assert seen == Counter({(f"p{i}", element): 1 for i, size in enumerate(sizes) for element in range(size)})
    held = [sum(len(run.weight) for run in share) for share in shares]
    assert max(held) - min(held) <= 1


def test_bf16_autocast_keeps_weights_gradients_and_outputs_in_fp32():
    engine = prepared(precision="bf16")
    seen = []
    engine.module.get_submodule("first").register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    output = engine.forward(inputs(0)[0])
    engine.backward(output["y"].sum(), last=False)
    assert seen == [torch.bfloat16]
    assert output["y"].dtype == torch.float32
    assert {p.dtype for p in engine.module.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in engine.module.parameters() if p.grad is not None} == {torch.float32}
    with engine.autocast():
        assert engine.module(inputs(0)[0])["y"].dtype == torch.bfloat16


def test_fp64_computes_and_sums_in_fp64():
    engine = prepared(precision="fp64")
    output = engine.forward(inputs(0)[0], gain=torch.ones(1))
    engine.backward(output["y"].sum(), last=True)
    assert output["y"].dtype == output["kept"].dtype == torch.float64
    assert engine.step([0.1, 0.1]).dtype == torch.float64
    assert {s.values.dtype for s in engine.state_slices() if s.kind != "buffer"} == {torch.float64}


def test_a_loss_that_is_not_finite_shows_in_the_norm():
    engine = prepared(clip=1.0, micro_batches=1)
    engine.backward(engine.forward(inputs(0)[0])["y"].sum() * float("nan"), last=True)
    assert engine.step([0.1, 0.1]).isnan()


def test_one_process_needs_no_communication():
    engine = prepared()
    x = torch.arange(6).view(3, 2)
    assert engine.average({"a": torch.tensor(2.0), "b": 3}) == {"a": 2.0, "b": 3.0}
    assert engine.average({}) == {}
    assert torch.equal(engine.gather(x), x)
    assert engine.any(True)
    assert not engine.any(False)
    assert engine.broadcast_object({"k": 1}) == {"k": 1}
    assert (engine.rank, engine.world_size, engine.is_main, engine.kind) == (0, 1, True, "single")
    engine.barrier()
    engine.close()
    engine.close()


def test_bare_start_is_one_process_and_says_how_to_get_more(monkeypatch, caplog):
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.INFO):
        engine = Engine(DistributedConfig(precision="fp32"))
    assert engine.kind == "single"
    assert "--config_file pretrain/cpu_two_processes.yaml" in caplog.messages[-1]


def test_single_engine_refuses_several_processes(monkeypatch):
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="single is for one process, but 2 were started; use auto"):
        Engine(DistributedConfig(engine="single"))


@pytest.mark.parametrize(("engine", "launcher"), [("deepspeed", "false"), ("auto", "true")])
def test_fp64_under_deepspeed_is_refused(engine, launcher, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", launcher)
    with pytest.raises(ValueError, match=r"fp64 does not work under DeepSpeed.*--distributed\.engine ddp"):
        Engine(DistributedConfig(engine=engine, precision="fp64"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_is_told_to_stay_in_fp32_and_not_to_clip(stage):
    config = zero_config(stage=stage, micro_batches=3, micro_batch_size=4, num_elements=1000)
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.0
    assert not {"bf16", "fp16", "torch_autocast", "communication_data_type"} & set(config)
