"""Labels are numbers, names or none, and what can be either is asked."""

import pytest

from data.sources.tables.labels import number_labels


def numbered(*values, names=None, no_label=None):
    return number_labels(values, names=names, column="label", no_label=no_label)


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (("0", "2", "1", "10"), [0, 2, 1, 10], 11),
        (("0.0", "1.0", "nan", ""), [0, 1, -1, -1], 2),
        (("1.", "0"), [1, 0], 2),
        (("b", "a", ""), [1, 0, -1], 2),
        (("NA", "DE"), [1, 0], 2),
    ],
)
def test_numbers_are_numbers_and_words_are_names(values, labels, classes):
    found = numbered(*values)
    assert (found[0], len(found[1])) == (labels, classes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("-1", "0", "1"), "holds -1: say --no-label=-1 if it means no label; if it is a class, --classes FILE"),
        (("0.5", "1"), "holds 0.5, which is no class number"),
        (("0", "1", "unknown"), r"holds numbers \(0, ...\) and 'unknown': say --no-label='unknown'"),
        (("9" * 5000, "1"), "holds 9{60}, which is no class number"),
        (("0", "3 5"), "holds '3 5', several labels of one image"),
    ],
)
def test_what_can_mean_two_things_is_asked(values, message):
    with pytest.raises(ValueError, match=message):
        numbered(*values)


def test_the_answer_is_taken(caplog):
    assert numbered("-1", "0", "1", no_label="-1") == ([-1, 0, 1], ("0", "1"))
    assert numbered("-1", "1", names=["-1", "1"]) == ([0, 1], ("-1", "1"))
    assert not caplog.records
    assert numbered("1", "2") == ([1, 2], ("0", "1", "2"))
    assert "from 1 to 2, and 1 of the 3 classes from 0 on have no image" in caplog.text


def test_the_same_letters_in_other_bytes_are_one_class():
    values = ["e\u0301", "\u00e9", "b"]
    for names in (None, ["b", "e\u0301"]):
        assert number_labels(values, names=names, column="label", no_label=None) == ([1, 1, 0], ("b", "\u00e9"))
