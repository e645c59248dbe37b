"""What is frozen takes no gradient and behaves as in evaluation."""

import pytest

from finetune.classification.model import build_model
from finetune.network.freezing import freeze, set_training_mode
from finetune.network.start import resolve_start


@pytest.fixture
def network(micro):
    config = micro(task={"freeze": "none"}, backbone={"depths": (1, 1, 2, 1)})
    return build_model(config, start=resolve_start(config.backbone), num_classes=4)


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_none_freezes_nothing(network):
    freeze(network, what="none")
    assert trained(network) == {name for name, _ in network.named_parameters()}


def test_backbone_leaves_the_classifier(network):
    freeze(network, what="backbone")
    assert trained(network) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("stages", [0, 1, 2, 4])
def test_n_stages_freeze_the_stem_and_the_first_n(network, stages):
    freeze(network, what=stages)
    trained_stages = {name.split(".")[1] for name in trained(network) if name.startswith("layers.")}
    assert trained_stages == {str(stage) for stage in range(stages, 4)}
    assert not any(name.startswith("patch_embed") for name in trained(network))
    assert "norm.weight" in trained(network)


def test_more_stages_than_there_are_are_refused(network):
    with pytest.raises(ValueError, match=r"task.freeze asks for 5 stages, SwinTransformer has 4"):
        freeze(network, what=5)


def test_frozen_parts_have_no_drop_path(network):
    freeze(network, what=3)
    set_training_mode(network)
    paths = {name: module for name, module in network.named_modules() if "drop_path" in name}
    assert paths
    assert all(module.training == name.startswith("layers.3") for name, module in paths.items())


def test_a_linear_probe_trains_its_classifier_and_moves_its_statistics_only(micro):
    config = micro(task={"method": "linear"})
    network = build_model(config, start=resolve_start(config.backbone), num_classes=4)
    set_training_mode(network)
    assert trained(network) == {"head.fc.1.weight", "head.fc.1.bias"}
    assert network.get_submodule("head.fc.0").training
    assert not network.get_submodule("layers").training
