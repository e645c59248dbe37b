"""The classifier of a timm network: found by name, with a BatchNorm before it for linear probes."""

from typing import Any

from torch import Tensor, nn

from engine.errors import UserError

PROBE_NORM_EPS = 1e-6


def classifier_name(network: nn.Module) -> str:
    """Return the name of the network's linear classifier, such as ``head.fc``.

    Raises:
        UserError: timm names none, or several.
    """
    name = network.pretrained_cfg.get("classifier")  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    if not isinstance(name, str):
        raise UserError(f"{type(network).__name__} has no single classifier that could be trained (timm says {name})")
    return name


def add_probe_norm(network: nn.Module) -> nn.Module:
    """Put a BatchNorm without scale and shift before the classifier, in place, and return the network."""
    name = classifier_name(network)
    linear = network.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=PROBE_NORM_EPS)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Sequential(norm, linear))
    return network


def plain_classifier(state: dict[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """Return a network's state with the probe's BatchNorm, if it has one, folded into an ordinary linear classifier.

    W (x - mean) / std + b = (W / std) x + (b - (W / std) mean).
    """
    inner = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    if "0.running_mean" not in inner:
        return state
    scale = (inner["0.running_var"].double() + PROBE_NORM_EPS).rsqrt()
    weight = inner["1.weight"].double() * scale
    bias = inner["1.bias"].double() - weight @ inner["0.running_mean"].double()
    kept: dict[str, Any] = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    dtype = inner["1.weight"].dtype
    return {**kept, f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}
