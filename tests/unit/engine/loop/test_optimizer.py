"""Parameter groups and schedules against the published figures."""

import logging
import math
import re

import pytest
import timm
import torch
from torch import nn

from engine.config import OptimizerConfig
from engine.loop.optimizer import (
    Schedule,
    build_optimizer,
    decays,
    find_backbone,
    layer_ids,
    param_groups,
    say_plan,
)

SMALL_SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 8, "num_heads": (1, 2, 4, 8)}


def swin(depths, name="swin_tiny_patch4_window7_224", **kwargs):
    return timm.create_model(name, depths=depths, **(SMALL_SWIN | kwargs))


def vit(**kwargs):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=8, depth=3, num_heads=1, **kwargs)


def expected_swin_id(name, depths):
    """The rule as published: stem 0, block j (counted from 0 over all stages) j+1, norm and head one above all blocks.

    The merge of stage s has the id of that stage's last block; timm keeps it in stage s+1 as ``downsample``.
    """
    if name.startswith("patch_embed."):
        return 0
    if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
        return sum(depths[: int(match[1])]) + int(match[2]) + 1
    if match := re.match(r"layers\.(\d+)\.downsample\.", name):
        return sum(depths[: int(match[1])])
    assert re.match(r"norm\.|head\.", name), name
    return sum(depths) + 1


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (2, 2, 18, 2), (1, 2, 1, 3)])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_layer_ids_of_swin_are_the_published_ones(name, depths, num_classes):
    ids = layer_ids(swin(depths, name, num_classes=num_classes))
    assert ids == {name: expected_swin_id(name, depths) for name in ids}
    assert {*ids.values()} == {*range(sum(depths) + 2)}


def test_layer_ids_of_vit():
    ids = layer_ids(vit(num_classes=5))
    for name, layer in ids.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        stem = name.startswith(("cls_token", "pos_embed", "patch_embed"))
        assert layer == (int(block[1]) + 1 if block else 0 if stem else 4), name


def test_swin_base_has_26_ids_with_the_published_scales():
    model = timm.create_model("swin_base_patch4_window7_224", num_classes=0, embed_dim=8, num_heads=(1, 2, 4, 8))
    scales = {g["name"]: g["lr_scale"] for g in param_groups(model, weight_decay=0.05, layer_decay=0.9)}
    assert len({name.split("_")[1] for name in scales}) == 26
    assert scales["layer_00_decay"] == pytest.approx(0.9**25)
    assert scales["layer_01_decay"] == pytest.approx(0.9**24)
    assert scales["layer_24_decay"] == pytest.approx(0.9)
    assert scales["layer_25_no_decay"] == 1


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
@pytest.mark.parametrize(
    "build",
    [lambda: swin((2, 2, 2, 2)), lambda: swin((1, 1, 1, 1), "swinv2_tiny_window8_256"), lambda: vit(init_values=1)],
)
def test_every_parameter_is_in_exactly_one_group_with_the_right_decay(build, layer_decay):
    model = build()
    groups = param_groups(model, weight_decay=0.05, layer_decay=layer_decay)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is parameters[name]
            plain = parameter.ndim <= 1 or re.search(
                r"bias_table|cls_token|pos_embed|gamma|logit_scale|cpb_mlp|\.bias$", name
            )
            assert group["weight_decay"] == (0.0 if plain else 0.05), name
    assert len({g["name"] for g in groups}) == len(groups)
    assert len(groups) == 2 or layer_decay < 1


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("layers.0.blocks.0.attn.qkv.weight", 2, True),
        ("layers.0.blocks.0.attn.qkv.bias", 1, False),
        ("layers.0.blocks.0.attn.relative_position_bias_table", 2, False),
        ("blocks.0.ls1.gamma", 4, False),
        ("blocks.0.layer_scale_1", 3, False),
        ("mask_token", 3, False),
        ("encoder.cls_token", 3, False),
        ("token_mixer.conv.weight", 4, True),
        ("decoder_pos_embed", 3, False),
        ("patch_embed.proj.weight", 4, True),
        ("pos_embed.proj.weight", 4, True),
    ],
)
def test_no_decay_rule(name, ndim, expected):
    assert decays(name, ndim=ndim) is expected


class Wrapper(nn.Module):
    """Like the pretraining model: an encoder, a decoder and a token."""

    def __init__(self):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.fixed = nn.Parameter(torch.zeros(4, 8), requires_grad=False)
        self.encoder = swin((1, 1, 1, 1), num_classes=0)
        self.decoder = nn.Linear(8, 8)


def test_parameters_outside_the_backbone_keep_the_full_rate():
    model = Wrapper()
    assert find_backbone(model) == "encoder."
    groups = {g["name"]: g for g in param_groups(model, weight_decay=0.05, layer_decay=0.5)}
    assert groups["outside_decay"]["names"] == ["decoder.weight"]
    assert groups["outside_no_decay"]["names"] == ["mask_token", "decoder.bias"]
    assert groups["outside_decay"]["lr_scale"] == 1
    assert groups["layer_00_decay"]["names"] == ["encoder.patch_embed.proj.weight"]
    assert groups["layer_00_decay"]["lr_scale"] == 0.5**5
    assert not any("fixed" in name for g in groups.values() for name in g["names"])


def test_layer_decay_without_one_backbone_is_refused():
    with pytest.raises(ValueError, match=r"one backbone .* inside Linear, found none; set optimizer.layer-decay to 1"):
        param_groups(nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)
    two = nn.ModuleDict({"a": vit(), "b": vit()})
    with pytest.raises(ValueError, match=r"found \['a', 'b'\]"):
        param_groups(two, weight_decay=0.1, layer_decay=0.5)


def test_groups_hold_every_parameter_once_lowest_layer_first():
    model = swin((2, 2, 6, 2), num_classes=10)
    groups = {group["name"]: group for group in param_groups(model, weight_decay=0.05, layer_decay=0.9)}
    assert len(groups) == 28
    assert sorted(name for group in groups.values() for name in group["names"]) == sorted(
        name for name, _ in model.named_parameters()
    )
    lowest = groups["layer_00_decay"]
    assert next(iter(groups)) == "layer_00_decay"
    assert (lowest["names"], lowest["weight_decay"]) == (["patch_embed.proj.weight"], 0.05)
    assert lowest["lr_scale"] == pytest.approx(0.9**13)
    assert groups["layer_02_decay"]["names"][0] == "layers.0.blocks.1.attn.qkv.weight"
    assert groups["layer_02_no_decay"]["weight_decay"] == 0


# Learning rates


def config(**kwargs):
    return OptimizerConfig(**{"epochs": 10, "warmup_epochs": 2, **kwargs})


@pytest.mark.parametrize(
    ("batch_size", "base_lr", "lr_batch_size", "peak"),
    [
        (4688, 1.5e-4, 256, 2.75e-3),  # GreenMIM Swin-B, 8 processes of 586
        (2048, 1.5e-4, 256, 1.2e-3),  # GreenMIM Swin-B window 14
        (2048, 1.0e-4, 256, 8.0e-4),  # GreenMIM Swin-L window 14
        (768, 1.25e-3, 512, 1.875e-3),  # GreenMIM Swin-B, fine-tuning
        (768, 1e-3, 512, 1.5e-3),  # GreenMIM Swin-L, fine-tuning
    ],
)
def test_peak_rates_are_the_published_ones(batch_size, base_lr, lr_batch_size, peak):
    schedule = Schedule(config(base_lr=base_lr, lr_batch_size=lr_batch_size), batch_size=batch_size, steps_per_epoch=5)
    assert schedule.lr(schedule.warmup_steps) == pytest.approx(peak, rel=2e-3)


def test_the_schedule_is_a_line_and_then_half_a_cosine():
    schedule = Schedule(
        config(base_lr=1e-3, warmup_lr=1e-5, min_lr=1e-4, lr_batch_size=100), batch_size=200, steps_per_epoch=10
    )
    assert (schedule.total_steps, schedule.warmup_steps) == (100, 20)
    assert schedule.lr(0) == 2e-5
    assert schedule.lr(10) == pytest.approx((2e-5 + 2e-3) / 2)
    assert schedule.lr(20) == pytest.approx(2e-3)
    assert schedule.lr(60) == pytest.approx((2e-3 + 2e-4) / 2)
    assert schedule.lr(30) == pytest.approx(2e-4 + 1.8e-3 * 0.5 * (1 + math.cos(math.pi / 8)))
    assert schedule.lr(100) == pytest.approx(2e-4)
    rates = [schedule.lr(step) for step in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_steps_override_epochs():
    schedule = Schedule(config(steps=30, warmup_steps=0), batch_size=256, steps_per_epoch=10)
    assert (schedule.total_steps, schedule.warmup_steps) == (30, 0)
    assert schedule.lr(0) == 1.5e-4


def test_a_warm_up_that_does_not_fit_says_what_to_set():
    with pytest.raises(ValueError, match=r"warm-up of 400 steps .* run of 20 steps; set optimizer.warmup-steps"):
        Schedule(OptimizerConfig(steps=20), batch_size=256, steps_per_epoch=10)


def test_layer_decay_enters_the_rates_once():
    settings = config(layer_decay=0.5, base_lr=1e-3)
    optimizer = build_optimizer(vit(), settings, batch_size=256)
    schedule = Schedule(settings, batch_size=256, steps_per_epoch=10)
    rates = {g["name"]: lr for g, lr in zip(optimizer.param_groups, schedule.lrs(optimizer, 20), strict=True)}
    assert rates["layer_04_decay"] == pytest.approx(1e-3)
    assert rates["layer_00_decay"] == pytest.approx(1e-3 / 16)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([*rates.values()])


def test_the_optimizer_is_adamw_as_configured():
    model = vit()
    optimizer = build_optimizer(model, config(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1), batch_size=512)
    assert all(g["betas"] == (0.8, 0.9) and g["eps"] == 1e-6 and g["fused"] for g in optimizer.param_groups)
    assert [g["name"] for g in optimizer.param_groups] == ["all_decay", "all_no_decay"]
    before = [p.clone() for p in model.parameters()]
    model(torch.ones(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_polynomial_decay_falls_from_the_peak_to_the_end_after_the_warmup():
    config = OptimizerConfig(
        base_lr=1.0, lr_batch_size=1, min_lr=0.1, steps=12, warmup_steps=2, decay="poly", poly_power=2
    )
    schedule = Schedule(config, batch_size=1, steps_per_epoch=1)
    assert [schedule.lr(step) for step in (0, 1, 2)] == [0.0, 0.5, 1.0]
    assert schedule.lr(7) == pytest.approx(0.1 + 0.9 * 0.25)
    assert schedule.lr(12) == pytest.approx(0.1)


def test_a_stepwise_rate_falls_at_its_shares_of_the_run():
    """COCO's 1x: 12 epochs, a tenth after 8 and again after 11."""
    config = OptimizerConfig(base_lr=1.0, lr_batch_size=1, epochs=12, warmup_steps=5, decay="steps")
    schedule = Schedule(config, batch_size=1, steps_per_epoch=10)
    assert [schedule.lr(step) for step in (5, 79, 80, 109, 110, 119)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(ValueError, match=r"decay-at takes rising shares of the run in \(0, 1\], got"):
        OptimizerConfig(decay="steps", decay_at=(0.9, 0.5))


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=0)
        self.head = nn.Linear(32, 3)


def test_what_lies_outside_the_backbone_gets_its_own_learning_rate():
    model = WithHead()
    groups = param_groups(model, weight_decay=0.1, head_lr_scale=10.0)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert {name for name, scale in scales.items() if scale == 10} == {"head.weight", "head.bias"}
    assert len(scales) == len(list(model.named_parameters()))
    with_decay = param_groups(model, weight_decay=0.1, head_lr_scale=10.0, layer_decay=0.5)
    scales = {name: group["lr_scale"] for group in with_decay for name in group["names"]}
    assert scales["encoder.blocks.0.attn.qkv.weight"] < scales["encoder.norm.weight"] == 1 < scales["head.weight"]


def test_a_learning_rate_for_heads_is_refused_where_the_classifier_is_inside_the_backbone():
    with pytest.raises(ValueError, match=r"head-lr-scale 10 is for heads outside the backbone"):
        param_groups(WithHead().encoder, weight_decay=0.1, head_lr_scale=10.0)


def test_plan_of_the_run_is_said_whatever_led_to_it(caplog):
    caplog.set_level(logging.INFO)
    config = OptimizerConfig(epochs=2, warmup_epochs=0.5, base_lr=1e-3)
    say_plan(Schedule(config, batch_size=32, steps_per_epoch=10), nn.Linear(4, 4), device=torch.device("cpu"))
    assert (
        "20 steps of 32 images (2 epochs of 10 steps), 5 of them warm-up to a learning rate of 0.000125" in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_network_for_gpus_is_warned_of_on_cpus(caplog):
    schedule = Schedule(OptimizerConfig(), batch_size=256, steps_per_epoch=1)
    with torch.device("meta"):
        say_plan(schedule, nn.Linear(8000, 8000), device=torch.device("cpu"))
    assert "64 M parameters" in caplog.text
    assert "800 steps" in caplog.text
