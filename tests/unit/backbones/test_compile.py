"""torch.compile takes the visible forward and exact windows whole.

It does so in a process without the shape checks, which break it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np, torch
from backbones.build import build, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout

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


RECOMPUTED = """
import numpy as np, torch
from backbones.build import build, forward_visible, layout_spec
from backbones.recompute.blocks import recompute_blocks
from backbones.visible.layout import build_layout
from backbones.config import BackboneConfig

sizes = dict(embed_dim=16, depths=(2, 1), num_heads=(1, 2))
model = build(BackboneConfig(name="swin_tiny_patch4_window7_224", img_size=(64, 96), window=7, **sizes))
layout = build_layout(layout_spec(model), np.eye(8, 12, dtype=bool)).to("cpu")
images, results = torch.randn(2, 3, 64, 96), []
for names, backend in (((), "aot_eager"), (("layers.0.blocks.0", "layers.1.blocks.0"), "aot_eager"), ((), None)):
    recompute_blocks(model, names)
    torch._dynamo.reset()
    model.zero_grad()
    forward = lambda x: forward_visible(model, x, layout)
    run = torch.compile(forward, fullgraph=True, backend=backend) if backend else forward
    run(images).square().sum().backward()
    results.append([parameter.grad for parameter in model.parameters()])
for gradients in results[:2]:
    assert all(torch.equal(a, b) for a, b in zip(gradients, results[2]))
"""


@pytest.mark.slow
def test_recomputed_blocks_compile_in_one_graph_to_the_same_gradients():
    done = subprocess.run([sys.executable, "-c", RECOMPUTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


MASKS = """
import torch
from backbones.build import build, forward_visible, layout_spec
from backbones.visible.layout import build_layout
from backbones.config import BackboneConfig
from pretrain.batches.masking import unit_mask

sizes = dict(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8))
model = build(BackboneConfig(name="swin_tiny_patch4_window7_224", **sizes))
spec, graphs, shapes = layout_spec(model), [], set()

def count(graph, inputs):
    graphs.append(graph)
    return graph

def layout_of(number):
    mask = unit_mask(spec.units, mask_ratio=0.75, seed=0, step=number, micro_batch=0)
    layout = build_layout(spec, mask.visible).to("cpu")
    shapes.add(tuple((plan.num_groups, plan.group_size) for stage in layout.stages for plan in stage.plans))
    return layout

compiled = torch.compile(lambda x, layout: forward_visible(model, x, layout), backend=count, fullgraph=True)
images = torch.randn(2, 3, 224, 224)
for number in range(16):
    layout = layout_of(number)
    torch.testing.assert_close(compiled(images, layout), forward_visible(model, images, layout))
print(len(graphs), len(shapes))
"""


@pytest.mark.slow
def test_other_masks_do_not_compile_again():
    """Groups of other sizes and numbers are sizes like any other, once they have been seen to differ."""
    command = [sys.executable, "-c", MASKS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-3000:]
    compilations, shapes = map(int, done.stdout.split())
    assert shapes > 12
    assert compilations <= 4


FIXED = """
import torch
from torch._dynamo.backends.debugging import aot_eager
from backbones.build import build, forward_visible, layout_spec
from backbones.visible.stacking import VisibleStack
from backbones.visible.layout import build_layout
from backbones.config import BackboneConfig
from pretrain.batches.masking import unit_mask

sizes = dict(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8))
model = build(BackboneConfig(name="swin_tiny_patch4_window7_224", window={window}, img_size=(128, 128), **sizes))
spec, graphs = layout_spec(model), []

def counted_aot(graph, inputs):
    graphs.append(graph)
    return aot_eager(graph, inputs)

def layout_of(number):
    mask = unit_mask(spec.units, mask_ratio=0.75, seed=0, step=number, micro_batch=0)
    return build_layout(spec, mask.visible, rule="tiles").to("cpu")

def run(forward, *args):
    model.zero_grad()
    out = forward(*args)
    out.square().mean().backward()
    return [out, *(p.grad for p in model.parameters() if p.grad is not None)]

plain = lambda x, layout: forward_visible(model, x, layout, attention="fused")
compiled = torch.compile(plain, backend=counted_aot, fullgraph=True)
images = torch.randn(1, 3, 128, 128)
for number in range(3):
    layout = layout_of(number)
    for got, expected in zip(run(compiled, images, layout), run(plain, images, layout), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
print(len(graphs))
for number in range(2):
    stack = VisibleStack.of([layout_of(number), layout_of(number + 1)])
    compiled(torch.stack([images, images]), stack)
print(len(graphs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("window", [7, 14])
def test_plans_in_tiles_compile_once_in_one_graph_with_the_fused_kernel_for_all_masks(window):
    """Their shapes are the same for every mask; a stack of two has shapes of its own, once."""
    command = [sys.executable, "-c", FIXED.format(window=window)]
    root, environment = Path(__file__).parents[3], {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["1", "2"]
