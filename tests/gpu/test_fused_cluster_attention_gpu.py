"""On a GPU: kernels of attention in clusters equal the plain way, repeat their bits, and are what is chosen."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import forward_visible, layout_spec
from backbones.kernels.availability import takes_kernels
from backbones.sec.attention import rotation
from backbones.visible.layout import build_layout
from tests.gpu.selection import selected
from tests.unit.backbones.kernels.fused_cluster_cases import CASES, HALF_CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2e-2}
LARGE = {
    "secvit_small_stage_1_visible": {"tokens": 768, "clusters": 32, "dim": 32, "images": 64},
    "secvit_small_stage_1_dense": {"tokens": 3136, "clusters": 32, "dim": 32, "images": 16},
    "detection": {"tokens": 67200, "clusters": 672, "dim": 16},
    "wide_heads_in_several_tiles": {"tokens": 999, "clusters": 5, "dim": 64, "images": 3},
}


EVERY = {**CASES, **{f"half_{name}": case for name, case in HALF_CASES.items()}, **LARGE}
QUICK = ("clusters_do_not_divide", "several_tiles", "half_whole_tile", "secvit_small_stage_1_visible")


@pytest.mark.parametrize(
    ("name", "dtype"),
    selected(EVERY, BOUNDS, quick=lambda name, dtype: name in QUICK and dtype in (torch.bfloat16, torch.float32)),
)
def test_similarity_output_and_gradient_equal_the_plain_way_in_float64(name, dtype):
    from tests.unit.backbones.kernels.fused_cluster_runs import errors

    found = errors(**EVERY[name], dtype=dtype, device="cuda")
    assert found.pop("similarity") <= 1e-5
    assert max(found.values()) <= BOUNDS[dtype], found


@pytest.mark.parametrize("num_clusters", [2, 32])
def test_gradients_repeat_their_bits_and_wait_for_nothing(num_clusters, no_waiting):
    from backbones.kernels.cluster_attention import fused_cluster_attention

    qkv = torch.randn(32, 768, 3, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    turn = rotation(torch.randint(56, (768, 2), device="cuda"), 32, dtype=torch.float32)
    assert takes_kernels(qkv)

    def gradient():
        out, values = fused_cluster_attention(qkv, turn, num_clusters=num_clusters)
        return torch.autograd.grad(out.square().sum() + values.square().sum(), qkv)[0]

    gradient()
    with no_waiting():
        one, other = (gradient() for _ in range(2))
    assert torch.equal(one, other)


def test_no_sorted_or_turned_copy_is_made():
    from backbones.kernels.cluster_attention import fused_cluster_attention

    qkv = torch.randn(64, 768, 3, 2, 32, device="cuda", dtype=torch.bfloat16)
    turn = rotation(torch.randint(56, (768, 2), device="cuda"), 32, dtype=torch.float32)
    fused_cluster_attention(qkv, turn, num_clusters=32)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, _ = fused_cluster_attention(qkv, turn, num_clusters=32)
    assert torch.cuda.max_memory_allocated() - before < 2.5 * out.nbytes  # sorted queries, keys and values take 3


@pytest.mark.parametrize("kept", [0.25, 1.0])
def test_networks_under_autocast_give_what_the_plain_way_gives(kept, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("secvit_tiny", num_classes=0).cuda().eval()
    spec = layout_spec(model)
    layout = build_layout(spec, np.random.default_rng(0).random(spec.units) < kept).to("cuda")
    images = torch.randn(8, 3, 224, 224, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr("backbones.sec.attention.takes_kernels", lambda qkv: False)
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            features = forward_visible(model, images, layout)
        features.float().square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((features.float().flatten(), gradient))
    for one, other in zip(*found, strict=True):
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.98
