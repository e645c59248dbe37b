"""On a GPU: the compiled kernels of window attention equal the reference, in every precision, and repeat their bits."""

import numpy as np
import pytest
import torch

from backbones.build import build, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import arrays_of, build_layout
from backbones.visible.stacking import VisibleStack
from benchmarks.kernels.cuda_graphs import recorded
from tests.gpu.selection import selected
from tests.unit.backbones.kernels.fused_attention_cases import CASES, plan_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LARGE = {
    "swin_base_stage_1": {
        "grid": (56, 56), "window": (7, 7), "shift": (3, 3), "share": 0.25, "rule": "tiles",
        "dim": 32, "heads": 4, "batch": 64,
    },
    "window_24_all_visible": {
        "grid": (48, 48), "window": (24, 24), "share": 1, "rule": "optimal", "dim": 64, "heads": 2, "batch": 5,
    },
}  # fmt: skip


QUICK = ("three_images", "shifted_in_tiles", "shifted_windows_in_a_row", "swin_base_stage_1")


@pytest.mark.parametrize(
    ("name", "dtype"),
    selected(
        [*CASES, *LARGE], BOUNDS, quick=lambda name, dtype: name in QUICK and dtype in (torch.bfloat16, torch.float32)
    ),
)
def test_output_and_all_gradients_equal_the_reference(name, dtype):
    from tests.unit.backbones.kernels.fused_attention_runs import errors

    found, _ = errors(**{**CASES, **LARGE}[name], dtype=dtype, device="cuda")
    assert max(found) <= BOUNDS[dtype]


@pytest.mark.parametrize("window", [7, 12])
def test_gradients_repeat_their_bits_and_wait_for_nothing(window, no_waiting):
    from backbones.kernels.window_attention import fused_attention

    plan = plan_for(grid=(48, 48), window=(window, window), shift=(3, 3), share=0.5, rule="tiles", device="cuda")
    qkv = torch.randn(32, len(plan.slot), 3, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    table = torch.randn(plan.masked, 4, device="cuda", requires_grad=True)

    def gradients():
        return torch.autograd.grad(fused_attention(qkv, table, plan, 0.2).square().sum(), (qkv, table))

    gradients()
    with no_waiting():
        runs = [gradients() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "twins_svt_small"])
def test_models_under_autocast_give_what_sdpa_gives(name):
    model = build(BackboneConfig(name=name, img_size=(224, 224), window=7)).cuda()
    spec = layout_spec(model)
    visible = np.random.default_rng(0).random(spec.units) < 0.25
    layout = build_layout(spec, visible, rule="tiles").to("cuda")
    images = torch.randn(8, 3, 224, 224, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = []
    for attention in ("auto", "sdpa"):  # a plan in tiles is computed by the kernel
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            features = forward_visible(model, images, layout, attention=attention)
        features.float().square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((features.float().flatten(), gradient))
    for one, other in zip(*found, strict=True):
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.995


def swin_and_layouts(number, *, window):
    model = build(BackboneConfig(name="swin_tiny_patch4_window7_224", img_size=(224, 224), window=window)).cuda()
    spec, generator = layout_spec(model), np.random.default_rng(0)
    masks = [(generator.permutation(49) < 12).reshape(spec.units) for _ in range(number)]
    return model, [build_layout(spec, mask, rule="tiles").to("cuda") for mask in masks]


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("window", [7, 14])
def test_a_stack_in_one_launch_equals_its_micro_batches(window):
    model, layouts = swin_and_layouts(3, window=window)
    images = torch.randn(3, 4, 3, 224, 224, device="cuda")
    together = forward_visible(model, images, VisibleStack.of(layouts))
    together.square().mean().backward()
    gradient = gradient_of(model).clone()
    model.zero_grad(set_to_none=True)
    alone = torch.stack([forward_visible(model, x, one) for x, one in zip(images, layouts, strict=True)])
    alone.square().mean().backward()
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(gradient, gradient_of(model), dim=0) > 0.9999


@pytest.mark.parametrize("window", [7, 14])
def test_a_step_recorded_as_a_cuda_graph_is_right_for_other_masks(window):
    model, (fixed, *layouts) = swin_and_layouts(4, window=window)
    images = torch.randn(4, 3, 224, 224, device="cuda")

    def step(layout):
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = forward_visible(model, images, layout).float().square().mean()
        loss.backward()
        return loss.detach()

    replay = recorded(lambda: step(fixed), model)
    for layout in layouts:
        for old, new in zip(arrays_of(fixed), arrays_of(layout), strict=True):
            old.copy_(new)
        loss, gradient = replay().clone(), gradient_of(model).clone()
        model.zero_grad(set_to_none=False)
        torch.testing.assert_close(step(layout), loss, rtol=1e-3, atol=1e-5)
        assert torch.nn.functional.cosine_similarity(gradient, gradient_of(model), dim=0) > 0.9999
