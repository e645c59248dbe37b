"""What cannot be measured is refused with what could be."""

from types import SimpleNamespace

import numpy as np
import pytest

from backbones.weights.handoff import write_backbone
from engine.checkpoint.store import CheckpointStore
from finetune.classification.classifiers import check_classes, find_classifiers
from finetune.measure import measure
from finetune.network.start import build_network, resolve_start


@pytest.fixture
def folder_of(micro, tmp_path):
    def write(num_classes):
        start = resolve_start(micro().backbone)
        write_backbone(
            tmp_path / "backbone",
            architecture=start.architecture,
            model_args=start.model_args,
            state=build_network(start, num_classes=num_classes).state_dict(),
            mean=start.mean,
            std=start.std,
            provenance={},
            num_classes=num_classes,
        )
        return tmp_path / "backbone"

    return write


def test_a_backbone_without_a_classifier_is_refused(folder_of):
    with pytest.raises(
        ValueError, match=r"has no classifier; fine-tune it first, or measure it with --task.method knn"
    ):
        find_classifiers(str(folder_of(0)))


def test_a_classifier_of_other_classes_is_refused(folder_of, micro):
    with pytest.raises(ValueError, match=r"tell 7 classes apart, but val-shards .* has 4"):
        measure(micro(), str(folder_of(7)))


@pytest.mark.parametrize("names", [("bee", "ant", "cat", "dog"), ("dog", "x", "y", "z")])
def test_classes_with_other_numbers_are_refused(names):
    trained = SimpleNamespace(name="raw", classes=("ant", "bee", "cat", "dog"), num_classes=4)
    val = SimpleNamespace(classes=names, folder="some/val", labels=lambda: np.arange(4))
    with pytest.raises(ValueError, match=rf"class '{names[0]}' is number 0 in val-shards some/val, and \d for the raw"):
        check_classes(trained, val)


def test_classes_with_other_names_altogether_are_warned_of(caplog):
    trained = SimpleNamespace(name="raw", classes=("ant", "bee"), num_classes=2)
    check_classes(trained, SimpleNamespace(classes=("n01", "n02"), folder="some/val", labels=lambda: np.arange(2)))
    assert "val-shards some/val have other names (n01) than those that were trained (ant)" in caplog.text


def test_a_checkpoint_of_pretraining_is_refused(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(3, [], {"step": 3, "architecture": "x"})
    store.wait()
    with pytest.raises(ValueError, match=r"step-000000003 is a checkpoint of pretraining"):
        find_classifiers(str(tmp_path))


def test_a_run_without_checkpoints_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        find_classifiers(str(tmp_path))


def test_what_is_neither_folder_nor_name_is_refused():
    with pytest.raises(
        ValueError, match=r"'swin_nothing' is neither a folder .* nor a model name of timm's such as swin_"
    ):
        find_classifiers("swin_nothing")
