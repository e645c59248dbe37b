"""Randomness as a pure function of a key: nothing in this project is drawn from a stateful stream.

A key starts with the run's seed and names what is drawn: ``stream(seed, "mask", step, micro_batch)``. The same key
gives the same numbers in any process, in any order, on any machine.
"""

import hashlib

import numpy as np


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """Start the generator that belongs to ``(seed, *key)``."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, key), "little")))


def torch_seed(seed: int, *key: int | str) -> int:
    """Derive a seed in [0, 2**63) for ``torch.manual_seed``, for what only torch can draw (dropout, drop path)."""
    return int.from_bytes(_digest(seed, key)[:8], "little") >> 1


def _digest(seed: int, key: tuple[int | str, ...]) -> bytes:
    return hashlib.blake2b(
        repr((int(seed), *(int(k) if not isinstance(k, str) else k for k in key))).encode(), digest_size=16
    ).digest()
