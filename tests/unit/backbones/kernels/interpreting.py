"""A process in which Triton interprets kernels.

They are bound to the interpreter or the compiler when they are imported.
"""

import importlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import pytest


@contextmanager
def interpreting(module):
    """Give a function ``(name, **arguments)`` that calls what ``module`` has of that name in such a process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(int).result()  # the process has started, and this one must not interpret what it imports later
        yield lambda name, **arguments: pool.submit(_run, module, name, arguments).result()


def _run(module, name, arguments):
    return getattr(importlib.import_module(module), name)(**arguments)
