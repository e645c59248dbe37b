"""What a forward pass keeps in memory for the backward pass."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Count the bytes that autograd keeps: each storage once, parameters of ``model`` and their views left out."""
    seen: dict[int, int] = {}
    with saved_storages(model, seen.__setitem__):
        forward()
    return sum(seen.values())


@contextlib.contextmanager
def saved_storages(model: nn.Module, note: Callable[[int, int], None]) -> Iterator[list[Tensor]]:
    """Tell ``note`` the address and bytes of each storage that autograd saves, as often as it does, but of parameters.

    Gives the saved tensors: as long as somebody holds them no other storage takes one of these addresses.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            note(storage.data_ptr(), storage.nbytes())
            kept.append(tensor)
        return tensor.detach()  # an operation that kept its own output, with what made it, would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
