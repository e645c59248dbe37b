"""What cannot be measured is refused with what could be."""

import pytest

from backbones.weights.handoff import write_backbone
from engine.checkpoint.store import CheckpointStore
from finetune.classification.classifiers import find_classifiers
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
