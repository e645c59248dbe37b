"""A backbone from outside the packages: the proofs of any backbone, and runs as an outsider would start them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from backbones.build import build, forward_masked, forward_visible, layout_spec, mask_token_dim
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.errors import UserError
from engine.extensions import load_extensions
from tests.unit.backbones.sec.dense_reference import dense_reference, map_of, tokens_of

ROOT = Path(__file__).resolve().parents[3]
BACKBONE = ROOT / "examples" / "extensions" / "backbone.py"
VISIBLE = np.array([[True, False, True], [False, True, True]])
SIZE = (64, 96)


@pytest.fixture(autouse=True, scope="module")
def extension():
    load_extensions(["--extension", str(BACKBONE)])


def small(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depths": (1, 2, 1, 1), "img_size": SIZE, "num_classes": 0}
    return timm.create_model("covit_tiny", **{**sizes, **options}).double()


def images(batch=2):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layout_of(model, visible):
    return build_layout(layout_spec(model), visible).to("cpu")


def plain_block(block, x, keep):
    """The block on whole maps in the plainest way, with zeros where nothing is visible."""
    x = (x + block.conv(x)) * keep
    q, k, v = block.qkv(block.norm1(tokens_of(x, keep))).unflatten(-1, (3, -1, 16)).unbind(2)  # b n h d
    gathered = []
    for head in range(q.shape[2]):
        one, other = (F.normalize(part[:, :, head], dim=1) for part in (q, k))  # channels over visible tokens
        weights = (one.mT @ other * block.temperature[head]).softmax(-1)
        gathered.append(v[:, :, head] @ weights.mT)
    x = x + map_of(block.proj(torch.cat(gathered, -1)), keep)
    return x + map_of(block.mlp(block.norm2(tokens_of(x, keep))), keep)


def assert_same(model, got, expected):
    assert torch.allclose(got, expected, rtol=1e-9)
    weight = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view(got.shape)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((features * weight).sum(), parameters) for features in (got, expected)]
    for (name, _), one, two in zip(model.named_parameters(), *gradients, strict=True):
        assert (one - two).abs().max() <= 1e-9 * max(1, two.abs().max()), name


@pytest.mark.parametrize("training", [False, True])
def test_everything_visible_equals_the_dense_forward_and_its_gradient(training):
    model = small().train(training)
    got = forward_visible(model, images(), layout_of(model, np.ones_like(VISIBLE)))
    assert_same(model, got, model.forward_features(images()).flatten(2).mT)


@pytest.mark.parametrize("training", [False, True])
def test_masked_forward_and_gradient_equal_dense_maps_without_the_masked_tokens(training):
    model = small().train(training)
    got = forward_visible(model, images(), layout_of(model, VISIBLE))
    assert_same(model, got, dense_reference(model, images(), torch.from_numpy(VISIBLE), run_block=plain_block))


def test_masked_pixels_change_exactly_nothing():
    model = small().float().train()
    layout, x = layout_of(model, VISIBLE), images().float()
    pixels = torch.from_numpy(VISIBLE).repeat_interleave(32, 0).repeat_interleave(32, 1)
    assert torch.equal(
        forward_visible(model, x, layout), forward_visible(model, torch.where(pixels, x, torch.nan), layout)
    )


def test_dense_way_sees_no_masked_pixel_and_all_units():
    model, visible = small(), torch.from_numpy(VISIBLE)
    token = torch.randn(1, 1, 1, mask_token_dim(model), dtype=torch.float64)
    pixels = visible.repeat_interleave(32, 0).repeat_interleave(32, 1)
    got = forward_masked(model, images(), visible, token)
    assert torch.equal(got, forward_masked(model, torch.where(pixels, images(), torch.nan), visible, token))
    everything = forward_masked(model, images(), torch.ones_like(visible), token)
    assert torch.allclose(everything, model.forward_features(images()).flatten(2).mT, rtol=1e-9)


def test_recomputing_blocks_changes_nothing():
    model, gradients = small().train(), []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        forward_visible(model, images(), layout_of(model, VISIBLE)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def start(program, *words):
    command = [sys.executable, ROOT / program / "main.py", *words, "--extension", BACKBONE]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_an_outsider_pretrains_it_and_takes_the_weights_elsewhere(tmp_path):
    samples = [
        NewSample(source=f"scene {number}", members=scene_members(0, number=number, size=64)[1]) for number in range(16)
    ]
    write_shards(samples, out=tmp_path / "shards", classes=None, limits=ShardLimits(samples=8))
    options = {
        "backbone.name": "covit_tiny",
        "backbone.embed-dim": 16,
        "backbone.drop-path": 0.1,
        "data.shards": tmp_path / "shards",
        "data.batch-size": 4,
        "data.micro-batch-size": 2,
        "data.workers": 1,
        "mim.decoder-dim": 32,
        "mim.decoder-heads": 2,
        "optimizer.steps": 2,
        "optimizer.warmup-steps": 1,
        "distributed.precision": "fp32",
        "report.every-steps": 1,
        "run.folder": tmp_path / "run",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = start("pretrain", *words, "--backbone.img-size", 64, 64, "--backbone.depths", 1, 1, 1, 1)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [report["step"] for report in reports if "loss" in report] == [1, 2]
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'backbone'}", pretrained=True, features_only=True)
    assert [x.shape[1] for x in model(torch.zeros(1, 3, 64, 64))] == [16, 32, 64, 128]


def test_programs_without_the_file_do_not_know_it_and_list_shows_it():
    assert "covit_tiny" in start("backbones", "list").stdout
    command = [sys.executable, ROOT / "backbones" / "main.py", "show", "covit_tiny"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "timm has no architecture 'covit_tiny'" in refused.stderr
    assert "a file that brings it is named with --extension" in refused.stderr


def test_a_size_that_the_network_has_not_is_refused():
    with pytest.raises(UserError, match=r"cannot make covit_tiny .*unexpected keyword argument 'window_size'"):
        build(BackboneConfig(name="covit_tiny", window=4))
