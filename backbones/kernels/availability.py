"""Choose between our own Triton kernels and PyTorch's operations: one decision for all that users do not choose."""

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

_SINCE = (8, 0)
"""Compute capability from which on GPUs have every type that training takes."""


def takes_kernels(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Decide whether ``x``, and what is computed from it in the types ``dtypes``, goes to our kernels.

    It does on a GPU with Triton, in types of 32 bits at most, where no compiler or exporter reads the operations:
    compilers fuse what they can read.
    """
    if not x.is_cuda or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False
    return max(dtype.itemsize for dtype in (x.dtype, *dtypes)) <= torch.float32.itemsize and has_kernels(x.device)


@torch.compiler.assume_constant_result
@lru_cache
def has_kernels(device: torch.device) -> bool:
    """Whether our kernels run on a device: a GPU that is new enough, with Triton."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _SINCE
