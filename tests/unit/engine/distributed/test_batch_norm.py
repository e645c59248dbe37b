"""BatchNorm that moves its running statistics once per step."""

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from engine.distributed.batch_norm import commit_step_statistics, join_records, step_batch_norm


def batches(count: int, *, channels: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, channels, 3, 2, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), BatchNormAct2d(4)])
def test_one_micro_batch_moves_statistics_as_torch_does(layer):
    reference = type(layer)(4, affine=layer.affine) if layer.affine is False else type(layer)(4)
    step_batch_norm(layer)
    x = batches(1)[0].requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = layer(x), reference(y)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer.running_mean, torch.zeros(4))
    commit_step_statistics(layer, world_size=1)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)
    assert layer.num_batches_tracked == 1
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), reference.eval()(x))


def test_statistics_move_once_by_the_mean_over_micro_batches():
    layer = step_batch_norm(nn.BatchNorm2d(4, momentum=0.3))
    xs = batches(3)
    for x in xs:
        layer(x)
    commit_step_statistics(layer, world_size=1)
    mean = torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in xs]).mean(0)
    torch.testing.assert_close(layer.running_mean, 0.3 * mean)
    torch.testing.assert_close(layer.running_var, 0.7 + 0.3 * variance)
    before = layer.state_dict()["running_mean"].clone()
    commit_step_statistics(layer, world_size=1)
    assert torch.equal(layer.get_buffer("running_mean"), before)


def test_groups_of_a_micro_batch_count_as_one_by_the_statistics_of_all_their_values():
    model = step_batch_norm(nn.Sequential(nn.BatchNorm2d(4, momentum=1.0), nn.BatchNorm2d(4).eval()))
    before, *groups = batches(4)
    parts = groups[0][:5], groups[1][:2, :, :2], groups[2][:1]
    for x in (before, *parts):
        model(x)
    join_records(model, last=3)
    assert len(model[0].step_records) == len(model[0].step_counts) == 2
    commit_step_statistics(model, world_size=1)
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in parts], dim=1)
    torch.testing.assert_close(model[0].running_mean, (before.mean((0, 2, 3)) + values.mean(1)) / 2)
    torch.testing.assert_close(model[0].running_var, (before.var((0, 2, 3)) + values.var(1)) / 2)
    assert model[0].step_counts == []


def test_no_momentum_means_a_cumulative_mean_over_steps():
    layer = step_batch_norm(nn.BatchNorm2d(4, momentum=None))
    xs = batches(4)
    for first, second in (xs[:2], xs[2:]):
        layer(first)
        layer(second)
        commit_step_statistics(layer, world_size=1)
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0))
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_buffers_do_not_depend_on_the_number_of_processes(world_size, monkeypatch):
    def model():
        return step_batch_norm(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))

    xs = batches(4)
    alone = model()
    for x in xs:
        alone(x)
    ranks = [model() for _ in range(world_size)]
    for index, x in enumerate(xs):
        ranks[index * world_size // len(xs)](x)
    sent = []
    monkeypatch.setattr("engine.distributed.batch_norm.dist.all_gather", lambda _outputs, mine: sent.append(mine))
    for rank in copy.deepcopy(ranks):
        commit_step_statistics(rank, world_size=world_size)

    def all_gather(outputs, _mine):
        for output, values in zip(outputs, sent, strict=True):
            output.copy_(values)

    monkeypatch.setattr("engine.distributed.batch_norm.dist.all_gather", all_gather)
    commit_step_statistics(alone, world_size=1)
    for rank in ranks:
        commit_step_statistics(rank, world_size=world_size)
        for name, buffer in rank.named_buffers():
            assert torch.equal(buffer, alone.get_buffer(name)), name


def test_conversion_keeps_names_and_leaves_layers_without_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    names = list(model.state_dict())
    converted = step_batch_norm(step_batch_norm(model))
    assert converted is model
    assert list(model.state_dict()) == names
    assert type(model[1]) is nn.BatchNorm1d
    assert isinstance(model[0], nn.BatchNorm1d)
