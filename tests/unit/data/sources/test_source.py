"""What is held out of a source, what tells a selection from another, and how processes prepare it."""

import dataclasses

import numpy as np

from data.sources.image_folder import find_images
from data.sources.scenes import Scenes
from data.sources.source import prepared, split_off
from tests.unit.data.write_options import write_options


def find(folder, **options):
    return find_images(write_options(folder, **options), folder)


def test_the_held_out_share_is_the_same_of_every_class(image_folder):
    names = [f"a/{n}.jpg" for n in range(40)] + [f"b/{n}.jpg" for n in range(10)] + ["c/0.jpg"]
    source = find(image_folder(*names))["train"]
    train, val = split_off(source, fraction=0.2, seed=3)
    assert sorted([*train.numbers, *val.numbers]) == list(range(51))
    assert np.bincount(np.array(source.labels)[val.numbers], minlength=3).tolist() == [8, 2, 0]
    assert not (np.diff(train.numbers) > 0).all()
    again = split_off(source, fraction=0.2, seed=3)
    assert np.array_equal(again[1].numbers, val.numbers)
    assert not np.array_equal(split_off(source, fraction=0.2, seed=4)[1].numbers, val.numbers)
    assert len(split_off(source, fraction=0.0, seed=3)[1].numbers) == 0


def test_without_shuffling_the_order_is_the_sources_and_the_same_samples_are_held_out(image_folder):
    source = find(image_folder(*[f"a/{n}.jpg" for n in range(9)], *[f"b/{n}.jpg" for n in range(9)]))["train"]
    train, val = split_off(source, fraction=0.3, seed=1, shuffle=False)
    assert (np.diff(train.numbers) > 0).all()
    assert sorted(split_off(source, fraction=0.3, seed=1)[1].numbers) == val.numbers.tolist()


def test_a_selections_digest_tells_other_files_labels_and_orders_apart(image_folder):
    source = find(image_folder("a/1.jpg", "b/2.jpg"))["train"]
    selection = split_off(source, fraction=0.0, seed=1)[0]
    others = [
        dataclasses.replace(selection, source=dataclasses.replace(source, labels=(1, 0))),
        dataclasses.replace(selection, source=dataclasses.replace(source, paths=("x", "y"))),
        dataclasses.replace(selection, source=dataclasses.replace(source, classes=("a", "c"))),
        dataclasses.replace(selection, numbers=selection.numbers[::-1]),
    ]
    assert selection.digest() == split_off(source, fraction=0.0, seed=1)[0].digest()
    assert len({selection.digest(), *(other.digest() for other in others)}) == 5


def test_the_number_of_processes_changes_nothing():
    selection = split_off(Scenes(seed=0, first=5, count=40, size=32), fraction=0.0, seed=1)[0]
    alone = list(prepared(selection, processes=1))
    assert [dataclasses.asdict(sample) for sample in prepared(selection, processes=2)] == [
        dataclasses.asdict(sample) for sample in alone
    ]
    assert alone[0].source == f"scene {5 + selection.numbers[0]}"
