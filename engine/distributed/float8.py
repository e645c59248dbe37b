"""Products in fp8 on GPUs that have them: those of the linear layers in transformer blocks, through torchao.

Parameters, their names, gradients, moments and checkpoints stay as under bf16; only what is multiplied is cast, with a
scale for each row. The product that gives a weight's gradient stays bf16: it sums over the rows of a micro-batch, so
their number need be no multiple of 16 and no row's gradient is lost in the scale of another. Without
``distributed.compile`` each cast is several kernels of its own. A layer whose weight is read without calling it stays
bf16 (Swin V2's ``qkv``).
"""

import dataclasses
import importlib
import importlib.util

import torch
from torch import nn

from engine.config import DistributedConfig
from engine.errors import UserError

PROJECTIONS = ("qkv", "q", "kv", "proj", "out_proj", "fc1", "fc2")
"""What the linear layers of blocks are called, before and after attention and in the MLP."""
MULTIPLE = 16
"""Tensor cores take fp8 matrices whose inner sizes are multiples of this."""
CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that have them: Ada and Hopper."""


def check_float8(config: DistributedConfig, *, is_sharded: bool, device: torch.device) -> None:
    """Refuse fp8 where it cannot be.

    Raises:
        UserError: the weights are sharded, the device has no such products, or torchao is not installed.
    """
    if not config.fp8:
        return
    if is_sharded:
        raise UserError(
            "distributed.fp8 does not work under ZeRO 3: its layers keep their whole weights for the backward pass; "
            "use --distributed.zero-stage 1 or 2"
        )
    if device.type != "cuda":
        raise UserError(f"distributed.fp8 needs a GPU, and this process runs on {device}; leave it out for bf16")
    if (capability := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise UserError(
            f"distributed.fp8 needs a GPU of compute capability {_dotted(CAPABILITY)} (Ada, Hopper) or newer, and "
            f"{torch.cuda.get_device_name(device)} has {_dotted(capability)}; leave it out for bf16"
        )
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "distributed.fp8 needs the torchao package, which is not installed; run `pip install 'torchao>=0.18'` or "
            "leave the option out"
        )


def use_float8(model: nn.Module, *, emulate: bool = False) -> list[str]:
    """Let the products of a model's blocks run in fp8 under bf16 autocast; return the names of their layers.

    Args:
        model: changed in place: its layers are replaced by others that hold the same parameters.
        emulate: compute what fp8 gives in fp32, on any device.

    Raises:
        UserError: no layer can.
    """
    names = [name for name, module in model.named_modules() if _is_projection(name, module)]
    if not names:
        raise UserError(
            f"distributed.fp8 found no linear layer of a transformer block in {type(model).__name__} whose input and "
            f"output sizes are multiples of {MULTIPLE}; leave it out for bf16"
        )
    float8 = importlib.import_module("torchao.float8")
    recipe = float8.Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp")
    float8.convert_to_float8_training(
        model,
        config=dataclasses.replace(recipe, emulate=emulate),
        module_filter_fn=lambda _, name: name in names,
    )
    return names


def _is_projection(name: str, module: nn.Module) -> bool:
    """Whether a module is a linear layer of a transformer block, of a size that can be multiplied in fp8."""
    *path, last = name.split(".")
    in_block = ("blocks" in path or "layers" in path) and last in PROJECTIONS
    if not in_block or type(module) is not nn.Linear:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
