"""What the tests on a GPU share."""

import contextlib
import warnings

import pytest
import torch


@pytest.fixture
def no_waiting():
    """A context for code that must not wait for the device: in it, waiting is an error."""

    @contextlib.contextmanager
    def forbidden():
        with warnings.catch_warnings(action="ignore"):  # torch says of the mode that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return forbidden
