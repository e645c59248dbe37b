"""Reports: what a line holds, and where it goes."""

import contextlib
import io
import json
import logging
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.config import ReportConfig
from engine.run import energy, reporting
from engine.run.energy import EnergyMeter
from engine.run.folder import RunFolder
from engine.run.reporting import Reporter, straggler_metrics


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def lines(folder):
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def quiet(**kwargs):
    return ReportConfig(**{"tensorboard": False, **kwargs})


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only when told."""
    now = SimpleNamespace(s=100.0)
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(reporting.time, name, lambda: now.s)
    return now


def test_a_line_says_how_fast_and_where_the_time_went(folder, clock):
    reporter = Reporter(folder, quiet(), total_steps=20)
    for _ in range(2):
        with reporter.timed("data"):
            clock.s += 1
        with reporter.timed("compute"):
            clock.s += 3
    reporter.report(2, {"loss": 0.5}, num_images=64)
    clock.s += 2
    reporter.report(3, {"loss": 0.25}, num_images=32)
    first, second = lines(folder)
    assert first.items() >= {"step": 2, "total_steps": 20, "loss": 0.5, "images_per_s": 8.0, "seconds": 8.0}.items()
    assert (first["seconds_data"], first["seconds_compute"], first["seconds_transfer"]) == (2, 6, 0)
    assert (second["seconds_data"], second["seconds_compute"], second["images_per_s"]) == (0, 0, 16)
    assert abs(first["time"] - time.time()) < 60
    assert first["peak_memory_bytes"] > 10_000_000


def test_time_is_counted_also_when_the_body_fails(folder, clock):
    reporter = Reporter(folder, quiet(), total_steps=20)
    with contextlib.suppress(KeyError), reporter.timed("data"):
        clock.s += 1
        raise KeyError
    reporter.report(1, {}, num_images=1)
    assert lines(folder)[0]["seconds_data"] == 1


def test_what_is_not_finite_becomes_null(folder):
    Reporter(folder, quiet(), total_steps=2).report(1, {"loss": float("nan"), "scale": float("inf")}, num_images=1)
    assert lines(folder)[0]["loss"] is None
    assert lines(folder)[0]["scale"] is None


def test_other_processes_write_nothing(folder):
    reporter = Reporter(folder, ReportConfig(), total_steps=2, is_main=False)
    with reporter.timed("data"):
        pass
    reporter.report(1, {"loss": 1.0}, num_images=1)
    reporter.close()
    assert not list(folder.path.iterdir())


def test_without_a_terminal_each_report_is_one_log_line(folder, caplog, clock):
    with caplog.at_level(logging.INFO, logger="engine.run.reporting"):
        reporter = Reporter(folder, quiet(), total_steps=20)
        clock.s += 10
        reporter.report(5, {"loss": 0.5}, num_images=40)
    assert [r.message for r in caplog.records] == [
        "step 5/20  loss 0.5000  4.0 images/s  waiting for data 0 %  30 s left"
    ]


def test_on_a_terminal_there_is_a_progress_bar(folder, caplog):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with (
        caplog.at_level(logging.INFO, logger="engine.run.reporting"),
        Reporter(folder, quiet(), total_steps=20, first_step=3, console=console) as reporter,
    ):
        reporter.report(5, {"loss": 0.5}, num_images=40)
    assert "5/20" in screen.getvalue()
    assert "loss 0.5000" in screen.getvalue()
    assert not caplog.records


def test_tensorboard_holds_the_same_figures_and_forgets_what_was_cut(folder):
    with Reporter(folder, ReportConfig(), total_steps=20) as reporter:
        for step in (1, 2, 3):
            reporter.report(step, {"loss": float(step)}, num_images=1)
    with Reporter(folder, ReportConfig(), total_steps=20, first_step=1) as reporter:
        reporter.report(2, {"loss": 20.0}, num_images=1)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_a_full_disk_costs_a_line_of_metrics_and_not_the_run(folder, caplog):
    folder.metrics.symlink_to("/dev/full")
    Reporter(folder, quiet(), total_steps=20).report(1, {"loss": 1.0}, num_images=1)
    assert "no metrics for step 1" in caplog.text


def test_wandb_without_the_package_is_refused_before_the_run(folder, monkeypatch):
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report.wandb-project 'mine' needs the wandb package"):
        Reporter(folder, quiet(wandb_project="mine"), total_steps=2)


def test_wandb_goes_on_with_the_same_run_after_a_resume(folder, monkeypatch):
    calls = []

    class Run:
        def log(self, values, *, step):
            calls.append((step, values["loss"]))

        def finish(self):
            calls.append("finish")

    fake = SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or Run(), __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        with Reporter(folder, quiet(wandb_project="mine"), total_steps=2) as reporter:
            reporter.report(1, {"loss": 0.5}, num_images=1)
    first, log, end, second = calls[:4]
    assert (log, end) == ((1, 0.5), "finish")
    assert first["project"] == "mine"
    assert first["id"] == second["id"]


def test_on_a_cpu_energy_is_absent_and_that_is_said_once(folder, caplog):
    with caplog.at_level(logging.INFO, logger="engine.run.energy"):
        reporter = Reporter(folder, quiet(), total_steps=5)
        reporter.report(1, {}, num_images=1)
        reporter.report(2, {}, num_images=1)
    assert "energy_j" not in lines(folder)[0]
    assert [r.message for r in caplog.records] == ["energy is not measured: no NVIDIA GPU is used"]


def test_energy_is_the_difference_of_the_counter(monkeypatch):
    counter = iter([5_000, 7_500, 7_600])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counter) if handle == "GPU-abc" else None,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy.torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    meter = EnergyMeter(torch.device("cuda", 0))
    assert meter.available
    assert meter.joules() == 2.5
    assert meter.joules() == pytest.approx(0.1)


def test_a_gpu_without_nvml_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.INFO, logger="engine.run.energy"):
        assert not EnergyMeter(torch.device("cuda", 0)).available
    assert "it needs nvidia-ml-py" in caplog.text


def test_the_slowest_process_is_named_with_its_share_of_the_median():
    assert straggler_metrics([2.0, 2.0, 5.0, 2.0]) == {
        "seconds_busy_median": 2.0,
        "seconds_busy_max": 5.0,
        "slowest_process": 2.0,
        "slowest_process_ratio": 2.5,
    }
    assert straggler_metrics([2.0]) == {}


def test_time_that_others_were_waited_for_does_not_make_a_process_slow(folder, clock):
    reporter = Reporter(folder, quiet(), total_steps=20)
    for phase in ("data", "communication", "compute"):
        with reporter.timed(phase):
            clock.s += 3
    assert reporter.busy_s == 6


def test_a_report_after_going_back_counts_its_own_time_only(folder, clock):
    reporter = Reporter(folder, quiet(), total_steps=20)
    with reporter.timed("compute"):
        clock.s += 50
    reporter.rewind(4)
    clock.s += 2
    reporter.report(6, {"loss": 1.0}, num_images=8)
    (line,) = lines(folder)
    assert (line["seconds"], line["seconds_compute"], line["images_per_s"]) == (2, 0, 4)
