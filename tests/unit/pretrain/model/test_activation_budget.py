"""A budget for activations: no bit of a gradient changes, what is kept falls to it, runs with and without are one."""

import dataclasses
import json
import logging
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from backbones.recompute.blocks import recompute_blocks
from backbones.recompute.choice import choose, least_budget
from backbones.recompute.saved_bytes import saved_bytes
from engine.checkpoint.store import newest_checkpoint
from pretrain.model import activation_budget
from pretrain.model.activation_budget import GIB, BudgetError, choose_blocks, forward_cost
from pretrain.model.greenmim import build_model
from pretrain.model.model_inputs import random_inputs
from pretrain.trainer import train
from tests.unit.pretrain.test_backbones import BACKBONES

DEEPER = {"depths": (2, 1, 2, 1)}
CASES = {
    "swin": DEEPER,
    "swin_v2": {**DEEPER, "name": "swinv2_tiny_window8_256"},
    **{name: BACKBONES[name] for name in ("vit", "convnext", "secvit", "twins", "xformer", "sec_faster_vit")},
}
BF16 = partial(torch.autocast, "cpu", torch.bfloat16)
PRECISIONS = [
    *(pytest.param(name, nullcontext, id=name) for name in CASES),
    *(pytest.param(name, BF16, id=f"{name}-bf16") for name in ("swin", "secvit")),
]


@pytest.fixture
def one_mask(monkeypatch):
    """Measure with one mask, that of ``inputs_of``."""
    monkeypatch.setattr(activation_budget, "MASKS", 1)


def recipe(micro, name, *, drop_path=0.0, images=4, **mim):
    config = micro(backbone={"drop_path": drop_path, **CASES[name]}, mim={"decoder_depth": 2, **mim})
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, micro_batch_size=images, batch_size=images)
    )


def inputs_of(config, model):
    masks = range(config.mim.micro_batches_per_forward)
    return random_inputs(config, model, masks=masks, images=config.data.micro_batch_size)


def step(model, inputs, precision):
    """Return the loss and all gradients; the same numbers are drawn in every call."""
    model.zero_grad()
    torch.manual_seed(0)
    with precision():
        loss = model(**inputs).sum()
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_no_choice_of_blocks_changes_a_bit_of_the_loss_or_a_gradient(name, precision, micro, one_mask):
    config = recipe(micro, name, drop_path=0.5)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():  # a decoder of zero biases would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    inputs = inputs_of(config, model)
    names = [block.name for block in forward_cost(config, model, precision=precision).blocks]
    assert len(names) >= 4
    expected = step(model, inputs, precision)
    for some in (names, names[::2], names[1::2], names[:1], names[-1:]):
        recompute_blocks(model, some)
        assert all(torch.equal(a, b) for a, b in zip(step(model, inputs, precision), expected, strict=True)), some


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_what_is_kept_is_what_was_predicted_and_falls_with_the_budget(name, precision, micro, one_mask):
    """What the caller (a layout) or autocast (casts of weights) holds anyway counts as kept, and is not seen saved."""
    config = recipe(micro, name, images=5, decoder_dim=64)
    model = build_model(config)
    inputs, cost = inputs_of(config, model), forward_cost(config, model, precision=precision)

    def kept():
        with precision():
            return model(**inputs)

    assert saved_bytes(model, kept) == cost.bytes
    found, least = [], least_budget(cost)
    for budget in [least + (cost.bytes - least) * i // 5 for i in range(5, -1, -1)]:
        choice = choose(cost, budget=budget)
        recompute_blocks(model, choice.recomputed)
        found.append(saved_bytes(model, kept))
        assert found[-1] <= choice.kept <= choice.peak <= budget
        assert precision is BF16 or found[-1] >= 0.97 * choice.kept
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.95 * found[0]


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_operations_are_a_constant_and_a_part_per_image(name, micro, one_mask, monkeypatch):
    """So passes of 2 and 3 images tell those of 7, which one pass of 7 measures directly."""
    config = recipe(micro, name, images=7)
    model = build_model(config)
    told = forward_cost(config, model, precision=nullcontext)
    monkeypatch.setattr(activation_budget, "FEW", 7)
    assert told == forward_cost(config, model, precision=nullcontext)


def test_several_micro_batches_of_a_forward_pass_keep_to_one_budget(micro, one_mask):
    config = recipe(micro, "swin", micro_batches_per_forward=3)
    model = build_model(config)
    inputs, cost = inputs_of(config, model), forward_cost(config, model, precision=nullcontext)
    expected = step(model, inputs, nullcontext)
    recompute_blocks(model, choose(cost, budget=cost.bytes * 2 // 3).recomputed)
    assert saved_bytes(model, lambda: model(**inputs)) <= cost.bytes * 2 // 3
    assert all(torch.equal(a, b) for a, b in zip(step(model, inputs, nullcontext), expected, strict=True))


def test_measuring_leaves_the_model_and_what_is_drawn_next_alone(micro, one_mask):
    config = recipe(micro, "secvit", drop_path=0.5)
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    forward_cost(config, model, precision=nullcontext)
    drawn = torch.rand(3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("way" in vars(module) for module in model.modules())
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def tensors(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint.step == 6
    kinds = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")
    return {(kind, name): checkpoint.read_full(kind, name) for kind in kinds for name in checkpoint.names(kind)}


def test_a_run_with_a_budget_ends_as_one_without_and_resumes_with_another(micro, tmp_path, caplog):
    cost = forward_cost(micro(), build_model(micro()), precision=nullcontext)
    budgets = [least_budget(cost) * share / GIB for share in (1.05, 1.4)]

    def run(name, budget, **run):
        with caplog.at_level(logging.INFO):
            train(micro(mim={"activation_gib": budget}, run={"folder": tmp_path / name, **run}))

    run("plain", None)
    assert "blocks are recomputed" not in caplog.text
    run("saving", budgets[0])
    said = [line for line in caplog.messages if line.startswith("activations: a forward pass of 4 images keeps")]
    assert len(said) == 1
    assert json.loads((tmp_path / "saving" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "STOP").touch()
    run("resumed", budgets[0])
    run("resumed", budgets[1])
    assert len(set(caplog.messages) & set(said)) == 1
    plain = tensors(tmp_path / "plain")
    for name in ("saving", "resumed"):
        other = tensors(tmp_path / name)
        assert other.keys() == plain.keys()
        assert all(torch.equal(other[key], plain[key]) for key in plain)


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_does(micro, tmp_path):
    config = micro(mim={"activation_gib": 1e-4}, run={"folder": tmp_path / "run"})
    with pytest.raises(
        BudgetError, match=r"must be at least 0\.\d+ for a forward pass of 4 images.* got 0.0001; "
    ) as said:
        train(config)
    assert not (tmp_path / "run" / "checkpoints" / "step-000000006").exists()
    least = float(str(said.value).split()[5])
    cost = forward_cost(config, build_model(config), precision=nullcontext)
    enough = dataclasses.replace(config, mim=dataclasses.replace(config.mim, activation_gib=least))
    assert choose_blocks(enough, cost).recomputed
    short = dataclasses.replace(config, mim=dataclasses.replace(config.mim, activation_gib=least - 1e-4))
    with pytest.raises(BudgetError):
        choose_blocks(short, cost)


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_a_budget_of_nothing_is_refused(budget, micro):
    with pytest.raises(ValueError, match=rf"mim.activation-gib must be positive, or None for no limit, got {budget}"):
        micro(mim={"activation_gib": budget})


def test_the_dense_encoder_has_no_budget(micro):
    with pytest.raises(ValueError, match=r"mim\.activation-gib needs mim\.encoder visible"):
        micro(mim={"activation_gib": 1.0, "encoder": "dense"})
