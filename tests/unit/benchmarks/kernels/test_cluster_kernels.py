"""The cases of attention in clusters are the stages of SecViT-S."""

import torch

from benchmarks.kernels.cluster_kernels import cases
from benchmarks.kernels.compare import EQUALITIES, FAMILIES

CPU = torch.device("cpu")


def test_there_is_a_case_per_stage_with_clusters_of_visible_and_of_all_tokens():
    all_cases = list(cases(CPU))
    assert [len(case.turn) for case in all_cases] == [768, 192, 48, 3136, 784, 196]
    assert [case.num_clusters for case in all_cases] == [32, 8, 2] * 2
    assert [(case.num_heads, case.head_dim) for case in all_cases] == [(2, 32), (4, 32), (8, 32)] * 2


def test_plain_way_gives_a_token_per_token():
    case = list(cases(CPU))[2]
    assert list(case.ways) == ["plain"]
    assert case.plain(case.qkv(images=2, dtype=torch.float32)).shape == (2, 48, 8, 32)


def test_family_is_measured_proved_and_reported():
    from benchmarks.gpu_report import _lines

    assert "cluster_attention" in FAMILIES
    assert "cluster_attention" in EQUALITIES
    times = {"plain": {"forward_backward": 2.0}, "fused": {"forward_backward": 1.0}}
    lines = list(_lines({"kernels": {"cluster_attention": {"cases": {"stage1_r0.75": times}}}}, {}))
    assert "| stage1_r0.75 | 2.000 | 1.000 |" in lines
