"""An Mlp that keeps less for the backward pass and computes the same."""

import torch
from timm.layers.mlp import Mlp

from backbones.ops.lean_mlp import lean_mlp


def saved_storages(run):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return out, sum(tensor.numel() for tensor in kept.values())


def test_values_and_gradients_are_those_of_the_plain_call():
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32), torch.randn(2, 5, 8, requires_grad=True)
    results = []
    for run in (mlp, lambda x: lean_mlp(mlp, x)):
        mlp.zero_grad()
        out = run(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
        out.square().sum().backward()
        results.append([out, gradient, *(parameter.grad for parameter in mlp.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_output_of_the_activation_is_not_kept():
    mlp, x = Mlp(8, 32), torch.randn(2, 5, 8)
    _, plain = saved_storages(lambda: mlp(x))
    _, lean = saved_storages(lambda: lean_mlp(mlp, x))
    assert plain - lean >= 2 * 5 * 32


def test_bf16_autocast_gives_the_same_gradients():
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32), torch.randn(2, 5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = mlp(x), lean_mlp(mlp, x)
    gradients = [torch.autograd.grad(out.float().sum(), x)[0] for out in outs]
    assert torch.equal(*gradients)


def test_dropout_is_drawn_once():
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32, drop=0.5).train(), torch.randn(2, 5, 8)
    torch.manual_seed(1)
    expected = mlp(x)
    torch.manual_seed(1)
    assert torch.equal(lean_mlp(mlp, x), expected)
