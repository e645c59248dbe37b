"""The search for where a number stops being finite: hooks on every module and parameter while it goes on.

It reads every output and gradient, and waits for the device once a micro-batch; in a healthy run there is no search.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What of one micro-batch was not finite."""

    loss: float
    """Its loss."""
    module: str | None
    """First module, as the forward pass runs, one of whose outputs was not finite."""
    module_type: str | None
    """Its class."""
    parameter: str | None
    """First parameter, as the backward pass runs, whose gradient was not finite."""


class NonFiniteSearch:
    """Looks at everything that ``module`` computes between ``__enter__`` and ``__exit__``."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handles: list[Any] = []
        self._outputs: list[tuple[str, str, Tensor]] = []
        self._gradients: list[tuple[str, Tensor]] = []

    def __enter__(self) -> "NonFiniteSearch":
        """Put the hooks in place."""
        for name, module in self._module.named_modules():
            self._handles.append(module.register_forward_hook(functools.partial(self._look_at_output, name)))
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(functools.partial(self._look_at_gradient, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self, loss: Tensor) -> Finding | None:
        """Report what was not finite since the last time, None if all was; waits for the device."""
        outputs, self._outputs = self._outputs, []
        gradients, self._gradients = self._gradients, []
        flags = [flag for *_, flag in outputs] + [flag for _, flag in gradients]
        finite = torch.stack([flag.to(loss.device) for flag in [*flags, torch.isfinite(loss.detach())]]).tolist()
        if all(finite):
            return None
        # A module comes before those that contain it, and the backward pass starts at the loss: the first one is it.
        modules = [(name, kind) for (name, kind, _), good in zip(outputs, finite, strict=False) if not good]
        parameters = [name for (name, _), good in zip(gradients, finite[len(outputs) :], strict=False) if not good]
        module, module_type = modules[0] if modules else (None, None)
        return Finding(
            loss=float(loss.detach()),
            module=module,
            module_type=module_type,
            parameter=parameters[0] if parameters else None,
        )

    def _look_at_output(self, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        for x in tensors_in(output):
            self._outputs.append((name, type(module).__name__, torch.isfinite(x.detach()).all()))

    def _look_at_gradient(self, name: str, gradient: Tensor) -> None:
        self._gradients.append((name, torch.isfinite(gradient.detach()).all()))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output, also in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
