"""The fused window attention equals the reference, values and gradients, run by Triton's interpreter on a CPU.

Kernels are bound to the interpreter or the compiler when they are imported, so they are interpreted in a process of
their own.
"""

import logging
import subprocess
import sys

import pytest
import torch

from backbones.ops import window_attention as dispatch
from tests.unit.backbones.kernels.fused_attention_cases import CASES, plan_for
from tests.unit.backbones.kernels.interpreting import interpreting

pytest.importorskip("triton", reason="no Triton on this system")
RUNS = "tests.unit.backbones.kernels.fused_attention_runs"


@pytest.fixture(scope="module")
def interpreted():
    with interpreting(RUNS) as call:
        yield call


SHAPES = {  # groups, slots of a group, windows, tokens
    "three_images": (4, 12, 4, 43),
    "shifted_in_tiles": (2, 64, 9, 87),
    "windows_of_one_token": (8, 2, 11, 15),
    "one_token": (1, 16, 16, 1),
    "all_visible": (4, 64, 4, 196),
    "windows_in_a_row": (1, 192, 2, 144),
    "shifted_in_several_tiles": (4, 100, 9, 400),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_all_gradients_equal_the_reference(interpreted, name):
    errors, shape = interpreted("errors", **CASES[name])
    assert shape == SHAPES.get(name, shape)
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("window", [4, 9])
def test_several_masks_at_once_equal_one_after_the_other(interpreted, window):
    found, key_tiles = interpreted("stack_errors", window=window)
    assert key_tiles == (1 if window == 4 else 3)
    assert max(found) <= 1e-5


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_fp16_is_within_a_thousandth(interpreted, share):
    errors, _ = interpreted(
        "errors", grid=(12, 12), window=(12, 12), share=share, rule="tiles", dim=32, heads=1, dtype=torch.float16
    )
    assert max(errors) <= 2e-3


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_bf16_is_within_two_hundredths(interpreted, share):
    errors, _ = interpreted("half_errors", grid=(12, 12), window=(12, 12), share=share, rule="tiles", dim=32, heads=1)
    assert max(errors) <= 2e-2


def test_pieces_of_larger_tensors_and_turned_gradients_are_read_as_they_lie(interpreted):
    assert max(interpreted("strided_error")) <= 1e-5


def test_two_runs_give_the_same_bits(interpreted):
    assert interpreted("repeated") == [(64, True), (128, True)]  # tiles that meet themselves, tiles that meet others


NARROW = {"window": 5, "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "img_size": (32, 48)}


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", {**NARROW, "rule": "tiles"}),
        ("swinv2_tiny_window8_256", {**NARROW, "rule": "optimal"}),
        (
            "twins_svt_small",
            {"img_size": (64, 96), "rule": "tiles", "window": 7, "embed_dim": 8,
             "depths": (1,) * 4, "num_heads": (1,) * 4},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_features_and_gradients_of_models_are_the_same(interpreted, architecture, sizes):
    assert max(interpreted("model_errors", architecture=architecture, **sizes)) <= 1e-5


def test_float64_is_refused(interpreted):
    assert "computes in torch.float32, torch.bfloat16, torch.float16, got torch.float64" in interpreted("refusals")


def test_without_a_gpu_it_is_refused():
    from backbones.kernels.window_attention import fused_attention

    plan = plan_for(grid=(4, 4), window=(2, 2), shift=(0, 0), share=1, rule="tiles")
    with pytest.raises(ValueError, match="needs a GPU, got tensors on cpu; use sdpa or reference there"):
        fused_attention(torch.zeros(1, 16, 3, 1, 8), torch.zeros(9, 1), plan, 1.0)


def a_plan(rule):
    return plan_for(grid=(14, 14), window=(7, 7), shift=(0, 0), share=0.4, rule=rule)


def test_without_triton_sdpa_runs_and_one_line_says_so(monkeypatch, caplog):
    plan = a_plan("optimal")
    qkv, table = torch.randn(2, len(plan.slot), 3, 2, 8), torch.randn(169, 2)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    dispatch._has_triton.cache_clear()
    with caplog.at_level(logging.WARNING):
        got = [dispatch.window_attention(qkv, table, plan, scale=1.0, implementation="fused") for _ in range(2)]
    dispatch._has_triton.cache_clear()
    expected = dispatch.window_attention(qkv, table, plan, scale=1.0, implementation="sdpa")
    assert torch.equal(got[0], expected)
    assert [record.message for record in caplog.records] == [
        "Triton is not installed, so window attention runs as sdpa instead of fused"
    ]


def test_auto_is_the_kernel_for_plans_that_were_made_for_it(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)
    plan = a_plan("optimal")
    with FakeTensorMode():
        qkv = torch.empty(2, len(plan.slot), 3, 2, 8, device="cuda")
        assert dispatch._chosen("auto", qkv, plan) == "sdpa"
        assert dispatch._chosen("auto", qkv, a_plan("tiles")) == "fused"
        assert dispatch._chosen("auto", qkv.double(), a_plan("tiles")) == "sdpa"
        monkeypatch.setattr(dispatch, "has_kernels", lambda device: False)
        assert dispatch._chosen("auto", qkv, a_plan("tiles")) == "sdpa"


def test_nothing_but_the_kernel_needs_triton():
    script = (
        "import sys; sys.modules['triton'] = None; import backbones.ops.window_attention; "
        "print('backbones.kernels.window_attention' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-2000:]
