"""What weights say of their network is judged before one is made; what is damaged is named with its place."""

import json

import pytest
from torch import nn

from engine.errors import UserError
from finetune.network.weights import METADATA, TENSORS, find_weights, start_from

DESCRIBED = {
    "weights": "best raw",
    "step": 4,
    "program": "segment",
    "architecture": "swin_tiny_patch4_window7_224",
    "model_args": {},
    "img_size": [64, 64],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "num_classes": 3,
    "classes": ["a", "b", "c"],
    "recipe": {},
}


def find(folder, content):
    (folder / METADATA).write_text(content)
    return find_weights(folder, task="segment", build=lambda _: pytest.fail("built"))


def wrong(name):
    """Values that are not of a member's kind."""
    values = ["missing", 1.5, {"a": 1}, [0], [[]], "word"]
    values = [value for value in values if type(value) is not type(DESCRIBED[name]) or isinstance(value, list)]
    return ["missing", *values]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in DESCRIBED for value in wrong(name)])
def test_each_member_is_looked_at(tmp_path, name, value):
    tree = {key: member for key, member in DESCRIBED.items() if key != name}
    if value != "missing":
        tree[name] = value
    with pytest.raises(UserError, match=name):
        next(iter(find(tmp_path, json.dumps(tree)).values()))()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "[" * 100_000, "\x00"])
def test_what_is_no_object_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"described\.json: "):
        find(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, (100).to_bytes(8, "little") + b"{"])
def test_truncated_weights_are_refused(tmp_path, content):
    (tmp_path / METADATA).write_text(json.dumps(DESCRIBED))
    (tmp_path / TENSORS).write_bytes(content)
    (load,) = find_weights(tmp_path, task="segment", build=lambda _: nn.Identity()).values()
    with pytest.raises(UserError, match=r"weights\.safetensors: expected a whole safetensors file"):
        load()


def test_a_sound_description_is_read():
    start = start_from(DESCRIBED)
    assert (start.architecture, start.img_size, start.mean) == (DESCRIBED["architecture"], (64, 64), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_args", {"checkpoint_path": "/tmp/evil.pth"}, "'checkpoint_path' would make timm load"),
        ("model_args", {"pretrained": True}, "'pretrained' would make timm load"),
        ("model_args", None, "expected an object for 'model_args'"),
        ("architecture", "hf-hub:someone/model", "timm has no architecture"),
        ("architecture", 7, "expected text for 'architecture'"),
        ("mean", [0.5], "expected 3 values for 'mean'"),
        ("std", [0.2, 0.0, 0.2], "numbers above 0"),
        ("img_size", [0, 32], "no size of images"),
        ("num_classes", "two", "expected a whole number for 'num_classes'"),
        ("classes", 3, "'classes'"),
    ],
)
def test_nonsense_is_one_line_with_the_folder_and_nothing_is_made(name, value, message, tmp_path):
    (tmp_path / METADATA).write_text(json.dumps({**DESCRIBED, name: value}))
    (load,) = find_weights(tmp_path, task="segment", build=lambda _: pytest.fail("a network was made")).values()
    with pytest.raises(UserError, match=rf"{tmp_path}: .*{message}"):
        load()
