"""Micro-batches that are copied while others are computed: in order, each once, and the same run to the bit."""

import contextlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from backbones.build import build, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from engine.loop import device_feed
from engine.loop.device_feed import Copy, CudaSideStream, DeviceFeed, tensors_in, to_device
from tests import tiny_run
from tests.tiny_run import STEPS, TinyBatches, config_of, run_tiny, same

CPU = torch.device("cpu")


class Log:
    """A side stream on the CPU that writes down what it does, by the first id of a micro-batch."""

    def __init__(self):
        self.events = []

    def copy(self, batch):
        self.events.append(("copy", batch["ids"][0].item()))
        return Copy(batch=to_device(batch, CPU), done=None)

    def hand_over(self, copy):
        self.events.append(("hand over", copy.batch["ids"][0].item()))
        return copy.batch


class Numbered:
    """Micro-batches whose id is 10 * step + number."""

    def __init__(self, *, micro_batches, last_step, broken=None):
        self._micro_batches, self._last_step, self._broken = micro_batches, last_step, broken
        self.restart(first_step=0, skip=())

    def restart(self, *, first_step, skip):
        keys = [(step, n) for step in range(first_step, self._last_step) for n in self._micro_batches]
        self._keys = iter([key for key in keys if key not in skip])

    def __iter__(self):
        return self

    def __next__(self):
        step, number = next(self._keys)
        if (step, number) == self._broken:
            raise ValueError(f"micro-batch {number} of step {step}")
        return {"ids": torch.tensor([10 * step + number]), "bad": []}


@pytest.fixture
def log(monkeypatch):
    """Force reading ahead, through a side stream that writes down what it does."""
    stream = Log()
    monkeypatch.setattr(device_feed, "side_stream", lambda device: stream)
    return stream


def untimed(phase):
    return contextlib.nullcontext()


def take(feed, batches, *keys):
    taken = [feed.take(batches, key=key, timed=untimed) for key in keys]
    return [(batch["ids"].item(), batch.get("skipped", False)) for batch in taken]


def test_the_next_copy_starts_before_a_micro_batch_is_handed_out_and_none_after_the_last(log):
    feed = DeviceFeed(CPU, micro_batches=range(1, 3), last_step=2)
    batches = Numbered(micro_batches=range(1, 3), last_step=2)
    assert take(feed, batches, (0, 1)) == [(1, False)]
    assert log.events == [("copy", 1), ("copy", 2), ("hand over", 1)]
    assert take(feed, batches, (0, 2), (1, 1), (1, 2)) == [(2, False), (11, False), (12, False)]
    assert log.events[3:] == [
        ("copy", 11),
        ("hand over", 2),
        ("copy", 12),
        ("hand over", 11),
        ("hand over", 12),
    ]


def test_a_longer_loader_is_asked_for_nothing_past_the_last_step(log):
    feed, batches = DeviceFeed(CPU, micro_batches=range(1), last_step=2), Numbered(micro_batches=range(1), last_step=9)
    take(feed, batches, (0, 0), (1, 0))
    assert next(batches)["ids"].item() == 20


def test_nothing_is_read_ahead_on_a_cpu():
    feed, batches = DeviceFeed(CPU, micro_batches=range(1), last_step=9), Numbered(micro_batches=range(1), last_step=9)
    assert take(feed, batches, (0, 0)) == [(0, False)]
    assert next(batches)["ids"].item() == 10


def test_what_was_read_ahead_is_never_handed_out_after_a_restart(log):
    feed = DeviceFeed(CPU, micro_batches=range(2), last_step=3)
    batches = Numbered(micro_batches=range(2), last_step=3)
    take(feed, batches, (0, 0), (0, 1), (1, 0))
    feed.restart(first_step=0, skip={(0, 1), (1, 0)})
    expected = [(0, False), (0, True), (0, True), (11, False), (20, False), (21, False)]
    assert take(feed, batches, (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)) == expected


def test_an_error_of_what_was_read_ahead_waits_for_its_turn(log):
    """The step before may be one that is saved."""
    feed = DeviceFeed(CPU, micro_batches=range(1), last_step=3)
    batches = Numbered(micro_batches=range(1), last_step=3, broken=(1, 0))
    assert take(feed, batches, (0, 0)) == [(0, False)]
    with pytest.raises(ValueError, match="micro-batch 0 of step 1"):
        take(feed, batches, (1, 0))


def test_another_micro_batch_than_the_next_is_not_handed_out(log):
    feed, batches = DeviceFeed(CPU, micro_batches=range(2), last_step=2), Numbered(micro_batches=range(2), last_step=2)
    take(feed, batches, (0, 0))
    with pytest.raises(AssertionError, match=r"micro-batch \(1, 0\) was asked for, and \(0, 1\) comes next"):
        take(feed, batches, (1, 0))


def test_tensors_are_found_in_whatever_holds_them_and_pixels_stay_bytes():
    @dataclass(frozen=True)
    class Held:
        name: str
        parts: tuple

        def to(self, device):
            return Held(self.name, tuple(part.to(device) for part in self.parts))

    a, b, c = torch.zeros(2, dtype=torch.uint8), torch.ones(1), torch.ones(3)
    batch = {"images": a, "layout": Held("x", (b, c)), "bad": [(3, "picture", "cut short")]}
    moved = to_device(batch, CPU)
    assert [x.shape for x in tensors_in(moved)] == [(2,), (1,), (3,)]
    assert moved["images"].dtype == torch.uint8
    assert moved["bad"] is batch["bad"]


def test_the_computing_waits_for_the_copy_alone_and_holds_every_tensor_of_it(monkeypatch):
    """Also those of the layout, which are parts of one."""
    events = []

    class Stream:
        def __init__(self, device):
            pass

        def record_event(self):
            events.append("copied")
            return "event"

        def wait_event(self, event):
            events.append(f"wait for {event}")

    computing = Stream(CPU)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: events.append((x.data_ptr(), stream)))
    layout = build_layout(layout_spec(build(BackboneConfig(name="swin_tiny_patch4_window7_224"))), np.eye(7) > 0)
    stream = CudaSideStream(CPU)
    copy = stream.copy({"images": torch.zeros(2, 3, dtype=torch.uint8), "layout": layout, "bad": []})
    assert events == ["copied"]
    batch = stream.hand_over(copy)
    assert events[1] == "wait for event"
    held = {address for address, stream in events[2:] if stream is computing}
    plan = batch["layout"].stages[1].plans[0]
    wanted = (batch["images"], batch["layout"].units, batch["layout"].stages[3].coords, plan.bias_index)
    assert held >= {x.data_ptr() for x in wanted}
    assert len(events) == 2 + len(tensors_in(batch))


class BadNow(TinyBatches):
    """Some samples are replaced, and reading is counted."""

    def __next__(self):
        batch = super().__next__()
        first = batch["ids"][0].item()
        bad = [(first, f"picture-{first}", "cut short")] if first % 4 == 0 else []
        return {**batch, "bad": bad, "reading": Reads(1)}


@dataclass(frozen=True)
class Reads:
    number: int

    def __add__(self, other):
        return Reads(self.number + other.number)

    def metrics(self):
        return {"reads": self.number}


def recorded(folder):
    """What a run wrote about its samples, and its metrics but for times and memory."""
    words = {name: (folder / name).read_text() for name in ("samples-00000.jsonl", "bad_samples.jsonl")}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "bad_samples", "bad_samples_total", "skipped_micro_batches", "reads")
    return words, [[line[name] for name in names] for line in metrics]


@pytest.mark.parametrize("poisoned", [set(), {(5, 2)}, {(1, 0), (4, 1), (4, 2)}, {(7, 3)}])
@pytest.mark.parametrize("per_forward", [1, 3])
def test_a_run_that_reads_ahead_is_the_same_with_rewinds_and_skips(tmp_path, monkeypatch, poisoned, per_forward):
    monkeypatch.setattr(tiny_run, "TinyBatches", BadNow)
    options = {"poisoned": poisoned, "per_forward": per_forward}
    run_tiny(config_of(tmp_path / "plain"), **options)
    log = Log()
    monkeypatch.setattr(device_feed, "side_stream", lambda device: log)
    training = run_tiny(config_of(tmp_path / "ahead"), **options)
    assert training.recovery.skipped == poisoned
    assert same(tmp_path / "plain", tmp_path / "ahead")
    assert recorded(tmp_path / "plain") == recorded(tmp_path / "ahead")
    assert len(log.events) > 2 * STEPS


def test_a_killed_run_that_reads_ahead_resumes_to_the_same_bits(tmp_path, log):
    run_tiny(config_of(tmp_path / "killed"), poisoned={(4, 1)}, until=5)
    run_tiny(config_of(tmp_path / "killed"), poisoned={(4, 1)})
    run_tiny(config_of(tmp_path / "whole"), poisoned={(4, 1)})
    assert same(tmp_path / "whole", tmp_path / "killed")
