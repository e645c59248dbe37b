"""The fused attention in clusters equals the plain one, values and gradients, run by Triton's interpreter on a CPU.

Kernels are bound to the interpreter or the compiler when they are imported, so they are interpreted in a process of
their own.
"""

import subprocess
import sys

import pytest
import torch

from backbones.kernels import availability as kernel_choice
from backbones.sec import attention as sec_attention
from backbones.sec.attention import SecAttention
from backbones.visible.token_grid import dense_grid
from tests.unit.backbones.kernels.fused_cluster_cases import CASES, HALF_CASES
from tests.unit.backbones.kernels.interpreting import interpreting

pytest.importorskip("triton", reason="no Triton on this system")
RUNS = "tests.unit.backbones.kernels.fused_cluster_runs"


@pytest.fixture(scope="module")
def interpreted():
    with interpreting(RUNS) as call:
        yield call


@pytest.mark.parametrize("name", CASES)
def test_similarity_output_and_gradient_equal_the_plain_way_in_float64(interpreted, name):
    errors = interpreted("errors", **CASES[name])
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("name", HALF_CASES)
def test_fp16_is_within_a_thousandth_and_sorts_in_fp32(interpreted, name):
    errors = interpreted("errors", **HALF_CASES[name], dtype=torch.float16)
    assert errors.pop("similarity") <= 1e-6
    assert max(errors.values()) <= 1e-3, errors


@pytest.mark.parametrize("name", HALF_CASES)
def test_bf16_is_within_two_hundredths_and_sorts_in_fp32(interpreted, name):
    errors = interpreted("half_errors", **HALF_CASES[name])
    assert errors.pop("similarity") <= 1e-6
    assert max(errors.values()) <= 2e-2, errors


def test_pieces_of_larger_tensors_and_transposed_gradients_are_read_as_they_lie(interpreted):
    assert interpreted("strided_error") <= 1e-5


def test_two_runs_give_the_same_bits(interpreted):
    assert interpreted("repeated") == [True, True]  # one tile a cluster, several tiles a cluster


def test_equal_tokens_keep_their_order(interpreted):
    assert interpreted("equal_tokens_error") <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("secvit_tiny", {}),
        ("secvit_tiny", {"visible": [[1, 0, 1], [0, 0, 1]], "global_token": "q"}),
        ("secvit_tiny", {"visible": [[0, 1, 0], [0, 0, 0]], "convolutions": True}),
        ("sec_swin_tiny", {"visible": [[1, 0, 1], [0, 0, 1]]}),
    ],
    ids=["dense", "visible", "visible_with_fused_convolutions", "visible_without_positions"],
)
def test_features_and_gradients_of_networks_are_the_same(interpreted, architecture, options):
    errors = interpreted(
        "model_errors", architecture=architecture, depths=(1, 1, 1, 1), clusters=(8, 4, 2, 1), **options
    )
    assert len(errors) > 50
    assert max(errors.values()) <= 1e-5, errors


def test_float64_is_refused(interpreted):
    assert "computes in torch.float32, torch.bfloat16, torch.float16, got torch.float64" in interpreted("refusals")


def test_without_a_gpu_it_is_refused():
    from backbones.kernels.cluster_attention import fused_cluster_attention

    with pytest.raises(ValueError, match="needs a GPU, got tensors on cpu"):
        fused_cluster_attention(torch.zeros(1, 4, 3, 1, 8), None, num_clusters=2)


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


def test_kernels_are_taken_on_gpus_with_triton_in_32_bits_where_nobody_reads_operations(monkeypatch):
    there = {}
    monkeypatch.setattr(kernel_choice, "has_kernels", lambda device: there.get("triton", True))
    x = torch.zeros(2)
    on_gpu = x.as_subclass(OnGpu)
    assert kernel_choice.takes_kernels(on_gpu, torch.float32)
    assert not kernel_choice.takes_kernels(x, torch.float32)
    assert not kernel_choice.takes_kernels(on_gpu, torch.float64)
    assert not kernel_choice.takes_kernels(on_gpu.double(), torch.float32)
    for reader in ("torch.compiler.is_compiling", "torch.onnx.is_in_onnx_export"):
        with monkeypatch.context() as patch:
            patch.setattr(reader, lambda: True)
            assert not kernel_choice.takes_kernels(on_gpu)
    there["triton"] = False
    assert not kernel_choice.takes_kernels(on_gpu)


@pytest.mark.parametrize(("options", "asked"), [({}, 1), ({"num_clusters": 1}, 0), ({"partition": "window"}, 0)])
def test_attention_takes_kernels_for_clusters_alone(monkeypatch, options, asked):
    calls = []

    def fused(qkv, turn, **arguments):
        calls.append(arguments)
        return qkv[:, :, 0], qkv[:, :, 2]

    monkeypatch.setattr(sec_attention, "takes_kernels", lambda qkv: True)
    monkeypatch.setattr("backbones.kernels.cluster_attention.fused_cluster_attention", fused)
    attention = SecAttention(8, **{"num_heads": 2, "num_clusters": 4, "global_token": "q", **options})
    attention(torch.randn(1, 49, 8), dense_grid(7, 7, num_units=49, device=torch.device("cpu")))
    assert calls == [{"num_clusters": 4, "mean_of_keys": False}] * asked


def test_without_a_gpu_attention_does_not_ask_for_triton():
    script = (  # a module that is None cannot be imported
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from backbones.sec.attention import SecAttention\n"
        "from backbones.visible.token_grid import dense_grid\n"
        "grid = dense_grid(7, 7, num_units=49, device=torch.device('cpu'))\n"
        "print(tuple(SecAttention(8, num_heads=2, num_clusters=4)(torch.ones(1, 49, 8), grid).shape))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "(1, 49, 8)", done.stderr[-2000:]
