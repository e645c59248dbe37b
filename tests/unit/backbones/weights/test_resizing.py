import numpy as np
import pytest
import timm
import torch

from backbones.weights.resizing import fit_state, resize_bias_table

SMALL = {"num_classes": 0, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "img_size": 56, "window_size": 7}


def table_of(function, window):
    """A bias table that holds a function of the offset."""
    rows, cols = (torch.arange(1 - side, side, dtype=torch.float64) for side in window)
    return function(rows[:, None], cols[None]).reshape(-1, 1)


def test_smaller_window_keeps_the_values_of_its_offsets_exactly():
    table = table_of(lambda y, x: torch.sin(y) + 3 * x, (7, 7))
    cut = resize_bias_table(table, before=(7, 7), after=(4, 5))
    assert torch.equal(cut, table_of(lambda y, x: torch.sin(y) + 3 * x, (4, 5)))


@pytest.mark.parametrize("after", [(8, 8), (14, 14), (9, 12), (7, 14)])
def test_larger_window_keeps_the_nearest_offsets_and_stretches_the_farthest(after):
    table = table_of(lambda y, x: torch.cos(y / 3) * torch.exp(-x.abs() / 4), (7, 7))
    grown = resize_bias_table(table, before=(7, 7), after=after).reshape(2 * after[0] - 1, 2 * after[1] - 1)
    before = table.reshape(13, 13)
    middle = (after[0] - 1, after[1] - 1)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            assert grown[middle[0] + y, middle[1] + x] == pytest.approx(before[6 + y, 6 + x].item(), abs=1e-12)
    torch.testing.assert_close(grown[[0, 0, -1, -1], [0, -1, 0, -1]], before[[0, 0, -1, -1], [0, -1, 0, -1]])


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 5), (3, 7), (6, 24)])
def test_constant_table_stays_constant_from_any_window(before, after):
    table = torch.full(((2 * before - 1) ** 2, 3), 0.25)
    grown = resize_bias_table(table, before=(before, before), after=(after, after))
    torch.testing.assert_close(grown, torch.full(((2 * after - 1) ** 2, 3), 0.25))


def test_spline_reads_a_cubic_of_the_geometric_grid_exactly():
    q = np.roots([1, 1, 1 - 4]).max()  # 1 + q + q^2 = 4: offsets 0..3 of window 4 go to 0..4 of window 5
    places = torch.tensor([-(1 + q + q * q), -(1 + q), -1, 0, 1, 1 + q, 1 + q + q * q], dtype=torch.float64)
    cubic = lambda x: 2 * x**3 - x**2 + 5  # noqa: E731
    table = cubic(places).repeat_interleave(7)[:, None]
    grown = resize_bias_table(table, before=(4, 4), after=(5, 5))
    torch.testing.assert_close(grown, cubic(torch.arange(-4.0, 5.0).double()).repeat_interleave(9)[:, None])


def test_model_of_another_window_gets_every_table_and_says_so():
    source = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
    target = timm.create_model("swin_tiny_patch4_window7_224", **{**SMALL, "img_size": 96, "window_size": 12})
    state, resized = fit_state(source.state_dict(), target)
    target.load_state_dict(state)
    assert [str(change).split(" ", 1)[1] for change in resized] == ["7x7 -> 12x12"] * 4


def test_windows_that_are_not_square_are_resized_per_axis_when_the_source_is_known():
    wide = {**SMALL, "img_size": (32, 112), "window_size": (4, 14)}
    source = timm.create_model("swin_tiny_patch4_window7_224", **wide)
    target = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
    state, resized = fit_state(source.state_dict(), target, source=source)
    target.load_state_dict(state)
    assert {(change.before, change.after) for change in resized} == {((4, 14), (7, 7))}


def test_position_embedding_is_resampled_and_its_class_token_kept():
    make = lambda size: timm.create_model(  # noqa: E731
        "vit_small_patch16_224", num_classes=0, embed_dim=16, depth=1, num_heads=1, img_size=size
    )
    source, target = make((64, 64)), make((96, 128))
    state, resized = fit_state(source.state_dict(), target, source=source)
    target.load_state_dict(state)
    assert [str(change) for change in resized] == ["pos_embed 4x4 -> 6x8"]
    torch.testing.assert_close(state["pos_embed"][:, 0], source.pos_embed[:, 0])


def test_same_size_changes_nothing():
    model = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
    state, resized = fit_state(model.state_dict(), model)
    assert not resized
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_tables_that_cannot_be_placed_are_refused():
    model = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(ValueError, match="has 170 rows, which no square window gives"):
        fit_state({name: torch.zeros(170, 1)}, model)
    with pytest.raises(ValueError, match="has 5 heads, the model 1"):
        fit_state({name: torch.zeros(121, 5)}, model)


@pytest.mark.parametrize(("before", "after"), [(2, 7), (3, 14), (4, 14)])
def test_growing_a_small_window_does_not_overshoot(before, after):
    torch.manual_seed(0)
    table = torch.rand((2 * before - 1) ** 2, 1, dtype=torch.float64)
    grown = resize_bias_table(table, before=(before, before), after=(after, after))
    assert grown.min() > -0.5
    assert grown.max() < 1.5


def test_grid_of_a_small_window_ends_where_the_usual_ratio_ends():
    table = table_of(lambda y, x: x + 0 * y, (3, 3))
    grown = resize_bias_table(table, before=(3, 3), after=(7, 7)).reshape(13, 13)
    assert grown[6, 6 + 1] == pytest.approx(1)
    assert grown[6, 6 + 3 :].tolist() == pytest.approx([2] * 4)  # 1 + 1.5 = 2.5 is the last place that is known
