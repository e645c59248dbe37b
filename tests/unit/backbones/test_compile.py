"""torch.compile takes the visible forward and exact windows whole (in a process without the shape checks, which break it)."""

import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np, torch
from backbones.build import build, forward_visible, layout_spec
from engine.backbone_config import BackboneConfig
from backbones.visible import build_layout

name, window = {name!r}, 7
sizes = dict(embed_dim=16, depths=(2, 1), num_heads=(1, 2))
model = build(BackboneConfig(name=name, img_size=(64, 96), window=window, **sizes))
layout = build_layout(layout_spec(model), np.eye(8, 12, dtype=bool)).to("cpu")
images = torch.randn(2, 3, 64, 96)
for forward in (lambda x: forward_visible(model, x, layout), model):
    compiled = torch.compile(forward, fullgraph=True)
    results = []
    for run in (compiled, forward):
        model.zero_grad()
        out = run(images)
        out.square().sum().backward()
        results.append((out, model.patch_embed.proj.weight.grad))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_compiles_in_one_graph(name):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(name=name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
