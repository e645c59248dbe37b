"""What the tests of the fused attention in clusters run in their own process, where Triton interprets its kernels."""

from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from backbones.build import forward_visible
from backbones.kernels import cluster_attention as fused
from backbones.sec.attention import ordered_attention, rotation, similarity, turned
from tests.unit.backbones.kernels.fused_attention_runs import products_of_bf16, relative_error
from tests.unit.backbones.sec.test_secvit import images as random_images
from tests.unit.backbones.sec.test_secvit import small
from tests.unit.backbones.sec.test_visible import layout_for

PARTS = ("similarity", "output", "values", "gradient")


def errors(
    *,
    tokens,
    clusters,
    dim,
    heads=2,
    images=1,
    turn=True,
    mean_of_keys=True,
    beside=True,
    only_beside=False,
    parts_per_read=fused.PARTS_PER_READ,
    dtype=torch.float32,
    device="cpu",
):
    """Compare each part with the plain way in float64, with the order of the fused one: relative errors by part."""
    draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    qkv = draw(images, tokens, 3, heads, dim).to(dtype).requires_grad_()
    weights = draw(2, images, tokens, heads, dim).to(dtype)
    weights = [None if only_beside else weights[0], weights[1] if beside else None]
    coords = torch.randint(14, (tokens, 2), generator=torch.Generator().manual_seed(0)).to(device)
    positions = rotation(coords, dim, dtype=torch.float32) if turn else None
    # few parts per read make the kernel read in several rounds, which small cases would not need
    with patch.object(fused, "PARTS_PER_READ", parts_per_read):
        likeness = fused.fused_similarity(qkv, positions, mean_of_keys=mean_of_keys)
    order = likeness.argsort(dim=-1, stable=True)
    out, values = fused.attention_in_order(qkv, positions, order, num_clusters=clusters)
    assert (likeness.dtype, out.dtype, values.dtype) == (torch.float32, dtype, dtype)
    got = [likeness, out, values, _gradient([out, values], qkv, weights)]

    # by the order found above: rounding may sort near-ties otherwise, and would hide the errors of the rest
    exact = qkv.detach().double().requires_grad_()
    q, k, v = exact.unbind(2) if positions is None else turned(exact, positions.double())
    likeness = similarity(q, k, global_token="k" if mean_of_keys else "q")
    out = ordered_attention(q, k, v, order, num_clusters=min(clusters, tokens))
    expected = [likeness, out, v, _gradient([out, v], exact, weights)]
    return {name: relative_error(a.double(), e) for name, a, e in zip(PARTS, got, expected, strict=True)}


def _gradient(outs, qkv, weights):
    given = [i for i, weight in enumerate(weights) if weight is not None]
    (gradient,) = torch.autograd.grad([outs[i] for i in given], qkv, [weights[i].to(qkv.dtype) for i in given])
    return gradient


def half_errors(**case):
    """Measure `errors` in bf16."""
    with products_of_bf16():
        return errors(dtype=torch.bfloat16, **case)


def strided_error():
    """Try a ``qkv`` that is a piece of a larger tensor, parts outermost, and transposed gradients: the error."""
    tokens, clusters = 21, 3
    large = torch.randn(3, 4, tokens, 2, 16, requires_grad=True)
    weights = torch.randn(2, 2, 16, tokens, 2).permute(0, 4, 3, 1, 2).unbind(0)
    turn = rotation(torch.randint(9, (tokens, 2)), 16, dtype=torch.float32)
    qkv = large[:, 1:3].permute(1, 2, 0, 3, 4)
    order = fused.fused_similarity(qkv, turn).argsort(dim=-1, stable=True)
    q, k, v = turned(qkv, turn)
    found = fused.attention_in_order(qkv, turn, order, num_clusters=clusters)
    expected = (ordered_attention(q, k, v, order, num_clusters=clusters), v)
    gradients = [torch.autograd.grad(outs, large, weights)[0] for outs in (found, expected)]
    return max(relative_error(*pair) for pair in ((found[0], expected[0]), gradients))


def repeated():
    """Tell whether two runs give the same bits, for clusters of one tile and of several."""
    return [_same_twice(tokens=tokens, clusters=2) for tokens in (48, 140)]


def _same_twice(*, tokens, clusters):
    qkv = torch.randn(2, tokens, 3, 1, 16, requires_grad=True)
    turn = rotation(torch.randint(9, (tokens, 2)), 16, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out, values = fused.fused_cluster_attention(qkv, turn, num_clusters=clusters)
        runs.append([out, *torch.autograd.grad(out.square().sum() + values.square().sum(), qkv)])
    return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def equal_tokens_error():
    """Measure the error where all keys of a head are alike: clusters are then tokens in their order."""
    qkv = torch.randn(1, 40, 3, 2, 16)
    qkv[:, :, 1] = qkv[:, :1, 1]
    out, _ = fused.fused_cluster_attention(qkv, None, num_clusters=2)
    order = torch.arange(40).expand(1, 2, 40)
    return relative_error(out, ordered_attention(*qkv.unbind(2), order, num_clusters=2))


def model_errors(*, architecture, visible=None, convolutions=False, **options):
    """Compare a whole model by kernels, of attention and perhaps of convolutions, with the plain one.

    The errors are relative, and by name: of its features and of the gradient of each parameter.
    """
    model = small(architecture, img_size=(64, 96), **options).float()
    x = random_images(64, 96).float()
    forward = lambda: model.forward_features(x)  # noqa: E731
    if visible is not None:
        layout, _ = layout_for(model, np.array(visible, dtype=bool))
        forward = lambda: forward_visible(model, x, layout)  # noqa: E731
    found = []
    for kernels in (True, False):
        with (
            patch("backbones.sec.attention.takes_kernels", return_value=kernels),
            patch("backbones.ops.submanifold.takes_kernels", return_value=kernels and convolutions),
        ):
            features = forward()
        weight = torch.linspace(-1, 1, features.numel()).view(features.shape)
        gradients = torch.autograd.grad((features * weight).sum(), list(model.parameters()))
        found.append([features, *gradients])
    names = ["features", *(name for name, _ in model.named_parameters())]
    return {name: relative_error(a, e) for name, a, e in zip(names, *found, strict=True)}


def refusals():
    """Provoke what is said about a dtype that the kernels do not compute in."""
    try:
        fused.fused_cluster_attention(torch.zeros(1, 4, 3, 1, 8, dtype=torch.float64), None, num_clusters=2)
    except ValueError as error:
        return str(error)
    return ""
