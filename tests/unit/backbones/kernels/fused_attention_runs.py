"""What the tests of the fused attention run in a process of their own, where Triton interprets its kernels."""

from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from backbones.build import build, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.kernels import window_attention as fused
from backbones.ops import window_attention as dispatch
from backbones.ops.window_attention import window_attention
from backbones.visible.layout import LayoutSpec, build_layout
from backbones.visible.stacking import VisibleStack
from backbones.visible.window_layout import StageSpec, window_stages
from tests.unit.backbones.kernels.fused_attention_cases import plan_for


def relative_error(got, expected):
    """The largest difference over the largest value, or over 0.1 where all are smaller: a gradient may be zero."""
    assert got.isfinite().all()
    return ((got.detach() - expected.detach()).abs().max() / expected.detach().abs().max().clamp(min=0.1)).item()


def results(attend, qkv, table, weight):
    """Run an attention forwards and backwards: its output and the gradients of ``qkv`` and ``table``."""
    out = attend(qkv, table)
    return [out, *torch.autograd.grad((out * weight).sum(), (qkv, table))]


def errors(
    *, grid, window, shift=(0, 0), share, rule, dim, heads=2, batch=1, dtype=torch.float32, programs=None, device="cpu"
):
    """Compare output and gradients with the reference in float64: relative errors, and the plan's groups and slots."""
    plan = plan_for(grid=grid, window=window, shift=shift, share=share, rule=rule, device=device)
    other = plan_for(grid=grid, window=window, shift=shift, share=share, rule="largest_window", device=device)
    n, generator = len(plan.slot), torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    qkv = draw(batch, n, 3, heads, dim).to(dtype).requires_grad_()
    table = draw(plan.masked, heads).requires_grad_()
    weight = draw(batch, n, heads * dim).to(dtype)
    with patch.object(fused, "PROGRAMS", programs or fused.PROGRAMS):
        got = results(lambda q, t: window_attention(q, t, plan, scale=0.4, implementation="fused"), qkv, table, weight)
    assert [x.dtype for x in got] == [dtype, dtype, torch.float32]
    exact = (qkv.detach().double().requires_grad_(), table.detach().double().requires_grad_())
    expected = results(
        lambda q, t: window_attention(q, t, other, scale=0.4, implementation="reference"), *exact, weight.double()
    )
    found = [relative_error(a.double(), e) for a, e in zip(got, expected, strict=True)]
    return found, (plan.num_groups, plan.group_size, len(plan.member), n)


def half_errors(**case):
    """Measure `errors` in bf16."""
    with products_of_bf16():
        return errors(dtype=torch.bfloat16, **case)


@contextmanager
def products_of_bf16():
    """Let the interpreter multiply bf16, of which it would take the bits as if they were integers."""
    import triton.runtime.interpreter as triton_interpreter

    plain = triton_interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *rest):
        values = [triton_interpreter.TensorHandle(_from_bf16(x.data), triton_interpreter.tl.float32) for x in (a, b)]
        return plain(self, *values, d, *rest)

    with patch.object(triton_interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield


def _from_bf16(bits):
    assert bits.dtype == np.uint16
    return (bits.astype(np.uint32) << 16).view(np.float32)


def strided_error():
    """Try a ``qkv`` that is a piece of a larger tensor, parts outermost, and a transposed gradient: the errors."""
    plan = plan_for(grid=(9, 9), window=(4, 4), shift=(1, 1), share=0.5, rule="optimal")
    n = len(plan.slot)
    large = torch.randn(3, 4, n, 2, 16, requires_grad=True)
    table = torch.randn(plan.masked, 2, requires_grad=True)
    weight = torch.randn(2, 16, n, 2).permute(3, 2, 0, 1)
    found = []
    for attend in (fused.fused_attention, lambda q, t, p, s: dispatch.IMPLEMENTATIONS["reference"](q, t, p, s)):
        out = attend(large[:, 1:3].permute(1, 2, 0, 3, 4), table, plan, 0.3)
        found.append([out, *torch.autograd.grad(out, (large, table), weight)])
    return [relative_error(a, e) for a, e in zip(*found, strict=True)]


def repeated():
    """Tell whether two runs give the same bits, for groups of one tile and of several, with shares of images."""
    found = []
    for window, share in (((6, 6), 0.5), ((12, 6), 1)):
        plan = plan_for(grid=(12, 6), window=window, shift=(0, 0), share=share, rule="tiles")
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(3, len(plan.slot), 3, 1, 16, generator=generator, requires_grad=True)
        table = torch.randn(plan.masked, 1, generator=generator, requires_grad=True)
        runs = [
            results(lambda q, t, plan=plan: fused.fused_attention(q, t, plan, 0.3), qkv, table, torch.ones(()))
            for _ in range(2)
        ]
        found.append((plan.group_size, all(torch.equal(a, b) for a, b in zip(*runs, strict=True))))
    return found


def model_errors(*, architecture, img_size, rule, **sizes):
    """Compare a whole model with the reference: relative errors of its features and of each parameter's gradient."""
    torch.manual_seed(0)
    model = build(BackboneConfig(name=architecture, img_size=img_size, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts with zero biases and tiny tables, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    spec = layout_spec(model)
    visible = np.random.default_rng(0).random(spec.units) < 0.5
    layout = build_layout(spec, visible, rule=rule).to("cpu")
    images = torch.randn(2, 3, *img_size)
    found = []
    for attention in ("fused", "reference"):
        model.zero_grad(set_to_none=True)
        features = forward_visible(model, images, layout, attention=attention)
        features.square().sum().backward()
        found.append([features, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    return [relative_error(a, e) for a, e in zip(*found, strict=True)]


def stack_errors(*, window):
    """Compare a stack of three masks with the reference one by one: relative errors, and the tiles a tile meets."""
    spec = LayoutSpec(img_size=(18, 18), patch=(1, 1), unit=(2, 2), stages=(stage_of(window),), build=window_stages)
    generator = np.random.default_rng(0)
    masks = [(generator.permutation(81) < 40).reshape(9, 9) for _ in range(3)]
    layouts = [build_layout(spec, mask, rule="tiles").to("cpu") for mask in masks]
    plan = VisibleStack.of(layouts).stages[0].plan((1, 1))
    qkv = torch.randn(6, 160, 3, 2, 16, requires_grad=True)
    table = torch.randn(plan.parts[0].masked, 2, requires_grad=True)
    weight = torch.randn(6, 160, 32)
    assert plan.joint is not None
    found = []
    with patch.object(fused, "PROGRAMS", 40), patch.object(fused, "SLOTS_PER_SUM", 64):
        for attention in ("fused", "reference"):
            attend = partial(window_attention, plan=plan, scale=0.4, implementation=attention)
            found.append(results(attend, qkv, table, weight))
    return [relative_error(a, e) for a, e in zip(*found, strict=True)], plan.joint.key_tiles


def stage_of(window):
    return StageSpec(grid=(18, 18), window=(window, window), shifts=((1, 1),), channels=32)


def refusals():
    """Provoke what is said about a dtype that the kernel does not compute in."""
    plan = plan_for(grid=(4, 4), window=(2, 2), shift=(0, 0), share=1, rule="tiles")
    try:
        fused.fused_attention(torch.zeros(1, 16, 3, 1, 8, dtype=torch.float64), torch.zeros(9, 1), plan, 1.0)
    except ValueError as error:
        return str(error)
    return ""
