"""The ways that are compared compute the same."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.kernels.attention_kernels import cases, flex, inputs, needed_scores, scores, ways

CPU = torch.device("cpu")


def test_there_is_a_case_per_stage_and_shift():
    all_cases = list(cases(224, ratio=0.75, device=CPU))
    assert [case.name for case in all_cases] == [
        f"224px_w7_r0.75_stage{stage}_shift{shift}" for stage in (1, 2, 3) for shift in (0, 3)
    ] + ["224px_w7_r0.75_stage4_shift0"]
    assert [len(case.plan.slot) for case in all_cases[::2]] == [12 * 64, 12 * 16, 12 * 4, 12]
    assert all(not len(case.tiles.bias_index) and len(case.plan.bias_index) for case in all_cases)
    assert all(needed_scores(case.plan) == needed_scores(case.tiles) <= scores(case.tiles) for case in all_cases)
    assert scores(all_cases[-1].tiles) == 16 * 16


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shifted", [False, True])
def test_flex_attention_with_a_document_mask_equals_groups(shifted):
    case = list(cases(224, ratio=0.75, device=CPU))[4 + shifted]
    qkv, table = inputs(case, images=2, dtype=torch.float32, device=CPU)
    expected = [attend(qkv, table) for attend in ways(case, CPU).values()]
    with torch.no_grad():
        attended = flex(case.plan, flex_attention)(qkv, table)
    for other in expected:
        torch.testing.assert_close(attended, other, rtol=1e-5, atol=1e-5)
