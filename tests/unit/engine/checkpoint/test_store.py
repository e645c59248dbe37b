"""Checkpoints: what any number of processes wrote, any number reads, whatever happened while it was written."""

import itertools
import json
import logging
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from engine.checkpoint.slices import TensorSlice
from engine.checkpoint.store import CheckpointStore, newest_checkpoint, open_checkpoint
from engine.run.folder import checkpoint_steps


def slices_of(tensors, *, kind="weight"):
    return [
        TensorSlice(kind=kind, name=name, shape=tuple(t.shape), offset=0, values=t.detach().flatten())
        for name, t in tensors.items()
    ]


def save_now(folder, step, *, fill=None, size=1000, **state):
    store = CheckpointStore(folder, keep_last=10)
    store.save(
        step, slices_of({"w": torch.full((size,), float(step if fill is None else fill))}), {"step": step, **state}
    )
    store.wait()


@st.composite
def cut_tensors(draw):
    """Tensors, each cut at random places, each piece given to a random one of 1 to 4 processes."""
    world_size = draw(st.integers(1, 4))
    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
    tensors, pieces = {}, [[] for _ in range(world_size)]
    for number, shape in enumerate(shapes):
        kind, name = draw(st.sampled_from(["weight", "exp_avg", "buffer"])), f"layer.{number}"
        flat = torch.randint(0, 2, (torch.Size(shape).numel(),)).to(draw(st.sampled_from(dtypes)))
        tensors[kind, name] = flat.reshape(shape)
        places = sorted({0, len(flat), *draw(st.lists(st.integers(0, len(flat)), max_size=3))})
        for begin, end in itertools.pairwise(places) if len(places) > 1 else [(0, 0)]:
            piece = TensorSlice(kind=kind, name=name, shape=tuple(shape), offset=begin, values=flat[begin:end])
            pieces[draw(st.integers(0, world_size - 1))].append(piece)
    return tensors, pieces


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut_tensors(), st.data())
def test_slices_cut_anywhere_read_back_whole_and_in_any_other_cut(tmp_path, cut, data):
    tensors, pieces = cut
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    stores = [CheckpointStore(folder, rank=r, world_size=len(pieces)) for r in range(len(pieces))]
    for store, own in zip(stores, pieces, strict=True):
        store.save(7, own, {"step": 7, "architecture": "a"})
    for store in stores:
        store.wait()
    checkpoint = stores[-1].latest()
    assert checkpoint.state == {"step": 7, "architecture": "a"}
    for (kind, name), whole in tensors.items():
        assert name in checkpoint.names(kind)
        back = checkpoint.read_full(kind, name)
        assert back.dtype == whole.dtype
        assert torch.equal(back, whole)
        begin = data.draw(st.integers(0, whole.numel()))
        length = data.draw(st.integers(0, whole.numel() - begin))
        assert torch.equal(checkpoint.read(kind, name, begin, length), whole.flatten()[begin : begin + length])


def test_files_are_ordinary_safetensors(tmp_path):
    save_now(tmp_path, 1)
    with safe_open(tmp_path / "step-000000001" / "rank-00000.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["weight:w@0"]
    assert sorted(p.name for p in (tmp_path / "step-000000001").iterdir()) == ["index.json", "rank-00000.safetensors"]


def test_what_is_saved_is_the_state_when_save_was_called(tmp_path):
    weight = torch.zeros(1 << 20)
    store = CheckpointStore(tmp_path)
    store.save(1, slices_of({"w": weight}), {})
    weight.fill_(1)
    store.wait()
    assert not store.latest().read_full("weight", "w").any()


def test_reading_outside_a_tensor_is_refused(tmp_path):
    save_now(tmp_path, 1, size=5)
    with pytest.raises(ValueError, match="has 5 elements, asked for 3 to 6"):
        newest_checkpoint(tmp_path).read("weight", "w", 3, 3)
    with pytest.raises(ValueError, match="holds no weight 'v'"):
        newest_checkpoint(tmp_path).read("weight", "v")


def test_elements_saved_twice_or_never_are_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, [TensorSlice(kind="weight", name="w", shape=(4,), offset=0, values=torch.ones(3))], {})
    with pytest.raises(AssertionError, match="3 of 4 elements are saved"):
        store.wait()
    assert store.latest() is None


def test_retention_keeps_the_last_ones_and_the_multiples(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(1, 12):
        store.save(step, slices_of({"w": torch.ones(3)}), {})
    store.wait()
    assert checkpoint_steps(tmp_path) == [4, 8, 10, 11]
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_good_ones(tmp_path):
    save_now(tmp_path, 8)
    save_now(tmp_path, 12)
    flip_bit(tmp_path / "step-000000012" / "rank-00000.safetensors")
    store = CheckpointStore(tmp_path, keep_last=1)
    assert store.latest().step == 8
    store.save(10, slices_of({"w": torch.ones(3)}), {})
    store.wait()
    assert store.latest().step == 10


def test_saving_a_step_again_is_harmless(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(5, slices_of({"w": torch.ones(3)}), {})
    store.save(5, slices_of({"w": torch.ones(3)}), {})
    store.wait()
    assert store.latest().step == 5
    again = CheckpointStore(tmp_path)
    assert again.latest().step == 5
    again.save(5, slices_of({"w": torch.ones(3)}), {})
    again.wait()
    assert again.latest().step == 5


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(tmp_path):
    save_now(tmp_path, 8)
    save_now(tmp_path, 9, fill=1)
    flip_bit(tmp_path / "step-000000009" / "rank-00000.safetensors")
    store = CheckpointStore(tmp_path)
    assert store.latest().step == 8
    store.save(9, slices_of({"w": torch.full((3,), 2.0)}), {})
    store.wait()
    assert store.latest().read_full("weight", "w").tolist() == [2, 2, 2]


# Damage


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip_bit, truncate, os.unlink])
@pytest.mark.parametrize("file", ["rank-00000.safetensors", "index.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, damage, file):
    save_now(tmp_path, 1)
    save_now(tmp_path, 2)
    damage(tmp_path / "step-000000002" / file)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).step == 1
    assert "step-000000002" in caplog.text
    assert f"using {tmp_path / 'step-000000001'}" in caplog.text
    with pytest.raises(ValueError, match="step-000000002"):
        open_checkpoint(tmp_path / "step-000000002")


def test_a_changed_byte_anywhere_in_the_index_is_seen(tmp_path):
    save_now(tmp_path, 1, size=3)
    path = tmp_path / "step-000000001" / "index.json"
    whole = path.read_bytes()
    for place in range(whole.index(b'"content"') + 11, len(whole) - 1, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            open_checkpoint(path.parent)


def test_only_damaged_checkpoints_never_mean_a_silent_new_beginning(tmp_path):
    save_now(tmp_path, 1)
    truncate(tmp_path / "step-000000001" / "rank-00000.safetensors")
    with pytest.raises(
        ValueError, match=r"every checkpoint is damaged: .*truncated.*; remove .* to start from the begin"
    ):
        newest_checkpoint(tmp_path)


def test_a_partial_checkpoint_is_named_and_cleared(tmp_path, caplog):
    save_now(tmp_path, 1)
    partial = tmp_path / "step-000000002.partial"
    partial.mkdir()
    (partial / "rank-00000.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).step == 1
    assert "step-000000002.partial was not finished" in caplog.text
    CheckpointStore(tmp_path)
    assert not partial.exists()


def test_a_missing_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no folder; expected something like runs/x/checkpoints/step-"):
        open_checkpoint(tmp_path / "nowhere")


# Into models


def model(width=4):
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def save_model(folder, module, **state):
    store = CheckpointStore(folder)
    slices = slices_of(dict(module.named_parameters())) + slices_of(dict(module.named_buffers()), kind="buffer")
    store.save(1, slices, state)
    store.wait()
    return store.latest()


def test_weights_and_buffers_come_back_bit_for_bit(tmp_path):
    saved, other = model(), model()
    saved[1].running_mean.fill_(3)
    other[0].weight.data.zero_()
    save_model(tmp_path, saved).load_weights(other)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_averaged_weights_load_like_weights(tmp_path):
    module = model()
    store = CheckpointStore(tmp_path)
    ema = {name: torch.full_like(p, 5) for name, p in module.named_parameters()}
    store.save(1, slices_of(ema, kind="ema") + slices_of(dict(module.named_buffers()), kind="buffer"), {})
    store.wait()
    store.latest().load_weights(module, kind="ema")
    assert all(p.eq(5).all() for p in module.parameters())


def test_another_architecture_is_refused_with_both_names_and_what_differs(tmp_path):
    checkpoint = save_model(tmp_path, model(), architecture="swin_tiny")
    other = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2), *[nn.Linear(1, 1) for _ in range(3)])
    with pytest.raises(ValueError, match="holds weights of swin_tiny, which do not fit swin_base") as error:
        checkpoint.load_weights(other, architecture="swin_base")
    message = str(error.value)
    assert "6 missing (3.bias, 3.weight, 4.bias, and 3 more)" in message
    assert "3 unexpected (1.num_batches_tracked, 1.running_mean, 1.running_var)" in message
    assert "1 of another shape (0.weight (4, 3) in the checkpoint, (4, 5) in the model)" in message


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.format.FORMAT", 99)
    save_now(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        open_checkpoint(tmp_path / "step-000000001")


def test_the_state_is_plain_json(tmp_path):
    save_now(tmp_path, 3, skipped=[[1, 2]])
    content = json.loads((tmp_path / "step-000000003" / "index.json").read_text())["content"]
    assert content["state"] == {"step": 3, "skipped": [[1, 2]]}
