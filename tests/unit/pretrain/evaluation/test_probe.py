"""Probes measure on the classes that they learnt, or say why they cannot before the first step."""

import pytest

from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.errors import UserError
from pretrain.evaluation.probe import check_probe_shards


@pytest.fixture
def labelled(tmp_path):
    """Write 6 samples with these classes, or without labels."""

    def write(name, classes):
        samples = []
        for number in range(6):
            _, members = scene_members(0, number=number, size=64)
            label = None if classes is None else number % len(classes)
            samples.append(NewSample(source=f"scene {number}", members=members, label=label))
        write_shards(samples, out=tmp_path / name, classes=classes, limits=ShardLimits(samples=20))
        return tmp_path / name

    return write


def probe(train, val):
    return {"every_steps": 1, "train_shards": train, "val_shards": val}


def test_classes_are_counted(micro, labelled):
    train, val = labelled("train", ("a", "b", "c")), labelled("val", ("a", "b", "c"))
    assert check_probe_shards(micro(probe=probe(train, val))) == 3


@pytest.mark.parametrize("other", [("a", "c", "b"), ("a", "b"), ("a", "b", "d")])
def test_other_classes_in_the_shards_that_are_measured_on_are_refused(micro, labelled, other):
    config = micro(probe=probe(labelled("train", ("a", "b", "c")), labelled("val", other)))
    with pytest.raises(UserError, match=r"classes of probe.train-shards \(3: a, b, c\) are not those of probe.val-sha"):
        check_probe_shards(config)


def test_shards_without_labels_are_refused(micro, labelled):
    config = micro(probe=probe(labelled("train", None), labelled("val", ("a", "b"))))
    with pytest.raises(UserError, match=r"probe.train-shards .*: 6 of 6 samples have no label"):
        check_probe_shards(config)


def test_shards_that_no_probe_looks_at_are_refused(micro, labelled):
    with pytest.raises(UserError, match=r"measured on every probe.every-steps steps: set that too"):
        micro(probe={"train_shards": labelled("train", ("a", "b"))})
