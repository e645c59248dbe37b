"""Memory: what is said when it runs out, and which sizes are found to fit."""

import pytest
import torch

from pretrain.model import memory
from pretrain.model.activation_budget import BudgetError
from pretrain.model.memory import explain_out_of_memory, is_out_of_memory, probe_memory, step_once


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"
        ),
        MemoryError(),
    ],
)
def test_running_out_names_the_micro_batch_size_the_peak_and_what_to_try(error, micro):
    message = (
        r"data\.micro-batch-size 4, peak \d+\.\d\d GiB; try a smaller.*mim\.activation-gib, "
        r"which recomputes blocks \(it is None\)"
    )
    with pytest.raises(ValueError, match=message), explain_out_of_memory(micro()):
        raise error


def test_another_error_passes_through(micro):
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(micro()):
        raise RuntimeError("shapes differ")


def test_a_real_allocation_that_cannot_succeed_is_recognised():
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)


def test_a_step_on_random_pixels_runs(micro):
    step_once(micro(), size=2, device=torch.device("cpu"))


def test_sizes_are_probed_up_to_the_first_that_does_not_fit(micro, monkeypatch):
    peaks = {1: 100, 2: 150, 4: 250, 8: None}
    monkeypatch.setattr(memory, "_peak_of", lambda config, size: peaks[size])
    monkeypatch.setattr(memory, "_free_bytes", lambda: 10**6)
    table = probe_memory(micro())
    assert list(table.columns[0].cells) == ["1", "2", "4", "8"]
    assert list(table.columns[2].cells) == ["yes", "yes", "yes", "no"]


def test_a_size_that_would_not_fit_is_not_tried(micro, monkeypatch):
    tried = []
    monkeypatch.setattr(memory, "_peak_of", lambda config, size: tried.append(size) or 100 * size)
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1000)
    probe_memory(micro())
    assert tried == [1, 2, 4, 8]


def test_a_step_keeps_to_the_budget_for_activations_or_is_refused(micro):
    config = micro(mim={"activation_gib": 0.0005})
    step_once(config, size=2, device=torch.device("cpu"))
    with pytest.raises(BudgetError, match="for a forward pass of 4 images"):
        step_once(config, size=4, device=torch.device("cpu"))


def test_the_table_ends_where_the_budget_for_activations_is_too_small(micro, monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda: 2**40)
    table = probe_memory(micro(mim={"activation_gib": 1e-5}))
    assert [list(column.cells) for column in table.columns] == [["1"], ["over mim.activation-gib"], ["no"]]
