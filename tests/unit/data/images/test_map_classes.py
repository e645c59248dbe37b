"""Colours and values of label maps as class numbers."""

import io

import numpy as np
import pytest
from PIL import Image

from data.images.decode import BadImage
from data.images.map_classes import read_map_classes

COLOURS = "0 0 0 background\n128,64,128\troad\n# a comment\n64 0 128 car\n\n192 0 0 car\n255 255 255 void\n"


@pytest.fixture
def classes(tmp_path):
    def classes(text):
        (tmp_path / "classes.txt").write_text(text)
        return read_map_classes(tmp_path / "classes.txt")

    return classes


def encoded(values, mode):
    content = io.BytesIO()
    Image.fromarray(np.array(values, np.uint16 if mode == "I;16" else np.uint8)).convert(mode).save(content, "PNG")
    return content.getvalue()


def recoded(classes, content):
    image = Image.open(io.BytesIO(classes.recode(content)))
    assert image.mode == "L"
    return np.asarray(image).tolist()


def test_colours_become_the_numbers_of_their_lines(classes):
    of_colours = classes(COLOURS)
    assert of_colours.names == ("background", "road", "car")
    pixels = [[[0, 0, 0], [128, 64, 128]], [[192, 0, 0], [64, 0, 128]], [[255, 255, 255], [0, 0, 0]]]
    assert recoded(of_colours, encoded(pixels, "RGB")) == [[0, 1], [2, 2], [255, 0]]
    with pytest.raises(BadImage, match="the label map has the colour 1 2 3, which is no class's"):
        of_colours.recode(encoded([[[1, 2, 3]]], "RGB"))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_binary_maps_keep_their_object(classes, mode):
    of_values = classes("0 background\n255 object\n" if mode != "1" else "0 background\n1 object\n")
    assert recoded(of_values, encoded([[0, 255], [255, 0]], mode)) == [[0, 1], [1, 0]]
    with pytest.raises(BadImage, match=r"the value 7|colour"):
        of_values.recode(encoded([[7]], "L"))


def test_palettes_are_told_by_colour_or_by_number(classes):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 128, 64, 128])
    content = io.BytesIO()
    image.save(content, "PNG")
    assert recoded(classes(COLOURS), content.getvalue()) == [[0, 1]]
    assert recoded(classes("1 road\n0 background"), content.getvalue()) == [[1, 0]]


def test_colours_in_maps_of_values_and_broken_maps_are_named(classes):
    with pytest.raises(BadImage, match="has colours, and the classes are given by one value"):
        classes("0 a\n1 b").recode(encoded([[[1, 2, 3]]], "RGB"))
    with pytest.raises(BadImage, match="does not decode"):
        classes("0 a\n1 b").recode(encoded([[1]], "L")[:45])


def test_a_table_with_a_header_is_read(classes):
    assert classes("name r g b\nAnimal 64 128 64").names == ("Animal",)
    assert classes("name,r,g,b\nAnimal,64,128,64\nTraffic Light,0,64,64").names == ("Animal", "Traffic Light")


@pytest.mark.parametrize(
    "text",
    [
        "0 0 0 background\n255 0 0 route 66\n1 2 3 2 wheels too",
        "name,r,g,b\nbackground,0,0,0\nroute 66,255,0,0\n2 wheels too,1,2,3",
        "0,0,0,background\n255 0 0 route 66\n1,2,3,2 wheels too",
        "0 0 0\tbackground\n255 0 0\troute 66\n1 2 3\t2 wheels too",
        "0 background\n7 route 66\n9,2 wheels too",
    ],
)
def test_numbers_in_names_are_the_names(classes, text):
    if "\n1 2 3 2 wheels" in text:  # where nothing tells the numbers apart, it is asked
        with pytest.raises(ValueError, match=r"line 3 of .*: expected a colour"):
            classes(text)
        text = text[: text.rindex("\n")] + "\n1 2 3, 2 wheels too"
    assert classes(text).names == ("background", "route 66", "2 wheels too")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("car,26,13", "line 1 of .*: expected a colour"),
        ("car 26 13", "line 1 of .*: expected a colour"),
        ("1,255,0,0,car", "line 1 of .*: expected a colour"),
        ("0 0 a", "line 1 of .*: expected a colour"),
        ("0 0 0", "line 1 of .*: expected a colour"),
        ("0 0 256 a", "line 1 of .*: expected a colour"),
        ("a\nb", "line 2 of .*: expected a colour"),
        ("0 a\n0 b", "line 2 of .*: 0 stands for another class already"),
        ("0 a\n0 0 1 b", "all by colours .* or all by values"),
        ("", "must hold 1 to 255 classes"),
        ("255 void", "must hold 1 to 255 classes"),
    ],
)
def test_other_lines_are_named(classes, text, words):
    with pytest.raises(ValueError, match=words):
        classes(text)
