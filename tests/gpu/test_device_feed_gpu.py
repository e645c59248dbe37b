"""On a GPU: micro-batches that are copied beside the computing arrive whole, and only the computing waits for them."""

import contextlib

import numpy as np
import pytest
import torch

from backbones.build import build, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from engine.loop.device_feed import CudaSideStream, DeviceFeed, tensors_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

STEPS, IMAGES, WIDTH = 24, 64, 4096


def micro_batches():
    """Make page-locked micro-batches, each with other pixels and another layout."""
    spec = layout_spec(build(BackboneConfig(name="swin_tiny_patch4_window7_224")))
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        visible = np.zeros(49, dtype=bool)
        visible[rng.permutation(49)[:12]] = True
        images = torch.from_numpy(rng.integers(256, size=(IMAGES, 3, 224, 224), dtype=np.uint8)).pin_memory()
        layout = build_layout(spec, visible.reshape(7, 7)).pin_memory()
        made.append({"images": images, "layout": layout, "bad": []})
    return made


def busy(x):
    """Keep the compute stream busy for longer than a copy takes."""
    for _ in range(8):
        x = x @ x
    return x


def sums(batch):
    return torch.stack([x.double().sum() for x in tensors_in(batch)])


def test_copies_beside_the_computing_arrive_whole_and_no_host_waits(no_waiting):
    """Memory of a micro-batch that was dropped is used again: not before its last use, or a sum would differ."""
    made, device = micro_batches(), torch.device("cuda")
    expected = [sums(batch) for batch in made]
    feed = DeviceFeed(device, micro_batches=range(1), last_step=STEPS)
    weights = torch.eye(WIDTH, device=device)
    busy(weights), sums({"x": weights})
    batches, found = iter(made), []
    torch.cuda.synchronize()
    with no_waiting():
        for step in range(STEPS):
            batch = feed.take(batches, key=(step, 0), timed=lambda phase: contextlib.nullcontext())
            busy(weights)
            assert batch["images"].dtype == torch.uint8
            found.append(sums(batch))
            del batch
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other.cpu())


def test_a_copy_does_not_wait_for_what_is_computed_before_it():
    stream, batch = CudaSideStream(torch.device("cuda")), micro_batches()[0]
    weights = torch.eye(WIDTH, device="cuda")
    stream.copy(batch)
    busy(weights)
    torch.cuda.synchronize()
    for _ in range(20):
        busy(weights)
    computed = torch.cuda.current_stream().record_event()
    stream.copy(batch).done.synchronize()
    assert not computed.query()
