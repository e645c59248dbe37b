"""Targets by name: what a registered one gives, and runs that were started before there was a choice."""

import subprocess
import sys

import pytest
import torch
import yaml

from engine.commands import resolve
from engine.recipe import dump
from engine.run.folder import changed_fields
from pretrain.config import MimConfig
from pretrain.model.greenmim import target_dim
from pretrain.targets.registry import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_gives_each_unit_of_each_image_its_values(name):
    target = resolve(TARGETS[name])
    values = target(torch.randn(2, 4, 3, 64, 96), (32, 16))
    assert values.shape == (2, 4, 2 * 6, target_dim(target, (32, 16)))


def test_an_unknown_target_is_refused_naming_the_others():
    with pytest.raises(ValueError, match=r"mim.target must be one of pixels.*, got 'hog'; .*--extension"):
        MimConfig(target="hog")


def test_a_run_from_before_there_was_a_choice_goes_on_with_pixels_only(micro, monkeypatch):
    monkeypatch.setitem(TARGETS, "others", TARGETS["pixels"])
    stored = yaml.safe_load(dump(micro()))
    del stored["mim"]["target"]
    assert changed_fields(micro(), stored=stored) == []
    assert changed_fields(micro(mim={"target": "others"}), stored=stored) == ["mim.target: not stored, asked 'others'"]


def test_the_config_knows_the_targets_without_torch():
    code = "import sys, pretrain.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
