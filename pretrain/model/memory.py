"""Which micro-batch sizes fit, and what to say when one does not."""

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch
from rich.table import Table

from backbones.recompute.blocks import recompute_blocks
from engine.errors import UserError
from engine.extensions import extension_arguments, load_extensions, loaded_extensions
from pretrain.config import PretrainConfig
from pretrain.model.activation_budget import BudgetError, choose_blocks, forward_cost
from pretrain.model.greenmim import build_model
from pretrain.model.model_inputs import random_inputs

logger = logging.getLogger(__name__)

LARGEST = 4096
HEADROOM = 0.9
"""Share of the free memory that a probe may plan to use on a CPU."""
TIME_LIMIT_S = 600.0


@contextlib.contextmanager
def explain_out_of_memory(config: PretrainConfig) -> Iterator[None]:
    """Turn running out of memory into a message that names the micro-batch size, the peak and what to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with data.micro-batch-size {config.data.micro_batch_size}, peak "
            f"{peak_bytes() / 2**30:.2f} GiB; try a smaller data.micro-batch-size (pretrain/main.py probe-memory "
            "finds those that fit) or "
            f"mim.micro-batches-per-forward (it is {config.mim.micro_batches_per_forward}), mim.activation-gib, which "
            f"recomputes blocks (it is {config.mim.activation_gib}), distributed.precision bf16, or "
            "distributed.zero-stage 2 or 3"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    messages = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in messages)


def peak_bytes() -> int:
    """Measure the most memory that this process has held: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def probe_memory(config: PretrainConfig) -> Table:
    """Try micro-batch sizes 1, 2, 4, ... and show the memory of a training step, up to the first that does not fit.

    Each size runs in a process of its own, forward, backward and AdamW's moments included. On a CPU a size is not tried
    if the growth so far says that it would need more than the free memory.
    """
    build_model(config)  # what cannot be built is no question of memory: this says what is wrong
    table = Table(
        "micro-batch size", "peak memory", "fits", title=f"{config.backbone.name} at {config.backbone.img_size}"
    )
    limit, peaks, size = _free_bytes(), [], 1
    while size <= LARGEST:
        # Twice the images need at least as much more as the last doubling did.
        expected = 2 * peaks[-1] - peaks[-2] if len(peaks) > 1 else 0
        try:
            peak = None if expected > HEADROOM * limit else _peak_of(config, size)
        except BudgetError as error:
            table.add_row(str(size), "over mim.activation-gib", "no")
            logger.info("micro-batch %d: %s", size, error)
            break
        fits = peak is not None
        table.add_row(
            str(size),
            f"{peak / 2**30:.2f} GiB" if peak else f"> {HEADROOM * limit / 2**30:.1f} GiB",
            "yes" if fits else "no",
        )
        logger.info("micro-batch %d: %s", size, f"{peak / 2**30:.2f} GiB" if peak else "does not fit")
        if peak is None:
            break
        peaks = [*peaks, peak]
        size *= 2
    return table


def _peak_of(config: PretrainConfig, size: int) -> int | None:
    """Measure the peak of a step in a process of its own, None if it does not fit.

    Raises:
        BudgetError: activations take more than ``mim.activation_gib``, whatever is recomputed.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(config, size, send, extension_arguments(loaded_extensions())))
    process.start()
    send.close()
    try:
        if not receive.poll(TIME_LIMIT_S):
            raise UserError(
                f"a step of {size} images did not end in {TIME_LIMIT_S:.0f} s; use a smaller network or image"
            )
        peak = receive.recv()
        if isinstance(peak, BudgetError):
            raise peak
        return peak
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:  # the system killed it for its memory
            return None
        raise UserError(
            f"a step of {size} images failed with exit code {process.exitcode}; its error is above"
        ) from None
    finally:
        process.kill()
        process.join()


def _measure(config: PretrainConfig, size: int, send: Connection, extensions: list[str]) -> None:
    load_extensions(extensions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        step_once(config, size=size, device=device)
        send.send(peak_bytes())
    except BudgetError as error:
        send.send(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        send.send(None)


def step_once(config: PretrainConfig, *, size: int, device: torch.device) -> None:
    """Take one training step on random pixels, in the recipe's precision."""
    config = replace(config, data=replace(config.data, batch_size=size, micro_batch_size=size))
    model = build_model(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=config.distributed.precision == "bf16")
    if config.mim.activation_gib is not None:
        choice = choose_blocks(config, forward_cost(config, model, precision=precision))
        recompute_blocks(model, choice.recomputed)
    inputs = random_inputs(config, model, masks=range(config.mim.micro_batches_per_forward), images=size)
    with precision():
        loss = model(**inputs).sum()
    loss.backward()
    optimizer.step()


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
