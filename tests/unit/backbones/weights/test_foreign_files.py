import argparse
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbones.weights.foreign_files import load_pickled, read_source
from engine.checkpoint.slices import TensorSlice
from engine.checkpoint.store import CheckpointStore

WEIGHTS = {"patch_embed.proj.weight": torch.arange(3.0)}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def same(source):
    assert list(source.state) == list(WEIGHTS)
    return all(torch.equal(source.state[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    torch.save({"model": WEIGHTS, "args": Bomb(touched)}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"evil.pth: holds .* does not open, because making it could run code"):
        read_source(path)
    assert not touched.exists()


def test_bare_pickle_with_a_system_call_is_refused_and_not_run(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"evil.pth"):
        read_source(path)
    assert not touched.exists()


def test_harmless_class_of_ours_is_refused_by_name(tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({"model": WEIGHTS, "args": types.SimpleNamespace(a=1)}, path)
    with pytest.raises(ValueError, match=r"holds types\.SimpleNamespace"):
        read_source(path)


def test_argparse_namespace_is_read(tmp_path):
    path = tmp_path / "mae.pth"
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1e-4, path=Path("x")), "epoch": 3}, path)
    assert same(read_source(path))


def test_scalars_and_types_of_numpy_are_read(tmp_path):
    path = tmp_path / "best.pth"
    extra = {"max_accuracy": np.float64(83.7), "epoch": np.int64(3), "best": np.bool_(True), "type": np.dtype("f4")}
    torch.save({"model": WEIGHTS, **extra}, path)
    assert same(read_source(path))
    assert load_pickled(path)["max_accuracy"] == 83.7


def test_object_scalar_of_numpy_is_refused(tmp_path):
    path = tmp_path / "odd.pkl"
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\nI00\nI01\ntRS'x'\ntR."
    path.write_bytes(scalar)
    with pytest.raises(ValueError, match=r"odd.pkl"):
        read_source(path)


def test_yacs_node_is_read_as_a_mapping_without_yacs(tmp_path, monkeypatch):
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, *given):
            super().__init__(*given)
            self.__dict__["__immutable__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    path = tmp_path / "simmim.pth"
    torch.save({"model": WEIGHTS, "config": CfgNode({"MODEL": CfgNode({"TYPE": "swin"})})}, path)
    monkeypatch.undo()
    assert same(read_source(path))


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_usual_wrappers_are_opened(tmp_path, wrapper):
    path = tmp_path / "weights.pth"
    torch.save({wrapper: WEIGHTS, "epoch": 1} if wrapper else WEIGHTS, path)
    assert same(read_source(path))


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert same(read_source(tmp_path / "weights.safetensors"))


def test_run_folder_gives_its_newest_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", rank=0, world_size=1, keep_last=2, keep_every_steps=None)
    whole = TensorSlice(kind="weight", name="patch_embed.proj.weight", shape=(3,), offset=0, values=torch.arange(3.0))
    state = {
        "architecture": "swin_x",
        "model_args": {"a": 1},
        "recipe": {"augment": {"mean": [0, 0, 0], "std": [1, 1, 1]}},
    }
    store.save(5, [whole], state)
    store.wait()
    for path in (tmp_path, next((tmp_path / "checkpoints").glob("step-*"))):
        source = read_source(path)
        assert same(source)
        assert (source.architecture, source.model_args, source.mean) == ("swin_x", {"a": 1}, (0, 0, 0))


@pytest.mark.parametrize(
    "state",
    [{"architecture": 7}, {"model_args": [1]}, {"recipe": [1]}, {"recipe": {"augment": {"mean": "grey"}}}],
)
def test_nonsense_in_a_checkpoint_is_one_line_with_its_folder(state, tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", rank=0, world_size=1, keep_last=2, keep_every_steps=None)
    whole = TensorSlice(kind="weight", name="patch_embed.proj.weight", shape=(3,), offset=0, values=torch.arange(3.0))
    store.save(5, [whole], state)
    store.wait()
    with pytest.raises(ValueError, match=r"step-\d+: what it says of its network is nonsense: expected"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\x80\x02garbage", "holds objects|truncated or damaged"),
        (pickle.dumps([1]), "expected a whole PyTorch checkpoint|expected a mapping|holds"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path, content, message):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken.pth: .*({message})"):
        read_source(path)


def test_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": WEIGHTS}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut.pth: expected a whole PyTorch checkpoint file, it is truncated"):
        read_source(path)


def test_file_without_tensors_says_what_it_has(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"no tensors found.*it has epoch"):
        read_source(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no such file"):
        read_source(tmp_path / "y.pth")
