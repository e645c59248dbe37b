"""What is stored of a network makes timm load nothing else, and nonsense is one line that names it."""

import json

import pytest
import torch

from backbones.weights.handoff import load_backbone, make_network, read_backbone, stored_skeleton, write_backbone
from backbones.weights.stored import check_model_args
from engine.errors import UserError

SMALL_VIT = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = "vit_tiny_patch16_224"


@pytest.fixture
def folder(tmp_path):
    model = make_network(VIT, {**SMALL_VIT, "num_classes": 0})
    write_backbone(
        tmp_path / "backbone",
        architecture=VIT,
        model_args=SMALL_VIT,
        state=model.state_dict(),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        provenance={},
    )
    return tmp_path / "backbone"


def change(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for place, value in changes.items():
        section, _, name = place.rpartition("__")
        (config[section] if section else config)[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "name",
    ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"],
)
def test_arguments_that_make_timm_load_other_files_are_refused(name, folder):
    with pytest.raises(UserError, match=f"'{name}' would make timm load"):
        make_network(VIT, {**SMALL_VIT, name: "x"})
    change(folder, **{f"model_args__{name}": "x"})
    with pytest.raises(UserError, match=rf"config.json.*'{name}' would make timm load"):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/x", "no_such_model"])
def test_only_names_of_networks_are_made(name):
    with pytest.raises(UserError, match="timm has no architecture"):
        make_network(name, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 10**7}, "depth 10000000 is out of bounds"),
        ({"depths": [500, 500, 500, 500]}, "makes 2000 blocks"),
        ({"depths": [[[[[[1]]]]]]}, "nested too deeply"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio nan is out of bounds"),
        ({"depths": [0] * 5000}, "5000 entries"),
    ],
)
def test_arguments_out_of_bounds_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        check_model_args(arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_cfg__std": [0.2, 0, 0.2]}, "expected numbers above 0"),
        ({"pretrained_cfg__mean": [float("nan")] * 3}, "mean .* is none of pixels"),
        ({"pretrained_cfg__mean": [0.5]}, "three channels"),
        ({"pretrained_cfg__input_size": [3, 0, 10**9]}, "no size of images"),
        ({"model_args": [1]}, "expected an object for 'model_args'"),
        ({"num_classes": 10**9}, "num_classes 1000000000 is out of bounds"),
        ({"architecture": "hf-hub:a/b"}, "timm has no architecture"),
        ({"model_args__depth": "two"}, "cannot make|cannot be made"),
        ({"pretrained_cfg__no_such_key": 1}, "timm's config"),
    ],
)
def test_a_config_that_is_nonsense_is_one_line_with_its_file(changes, message, folder):
    change(folder, **changes)
    with pytest.raises(UserError, match=rf"config\.json.*({message})"):
        load_backbone(folder)


def test_what_fails_in_a_network_of_ours_is_the_files_fault():
    with pytest.raises(UserError, match=r"secvit_tiny cannot be made with|timm cannot make secvit_tiny"):
        stored_skeleton("secvit_tiny", {"depths": "abc"})


def test_a_whole_folder_is_still_read(folder):
    assert read_backbone(folder).model_args == SMALL_VIT
    assert load_backbone(folder).forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 16)
