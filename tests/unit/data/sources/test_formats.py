"""Kinds of sources follow from the registry: what is read, what is refused, and what a file from outside adds."""

import dataclasses
import subprocess
import sys

import pytest

from data.sources.config import Write
from data.sources.formats import SourceFormat, check_options, find_source, source_format
from data.sources.registry import FORMATS
from tests.unit.data.write_options import write_options


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_has_a_format_that_reads_options_there_are(name):
    kind = source_format(name)
    assert isinstance(kind, SourceFormat)
    assert set(kind.options) <= {field.name for field in dataclasses.fields(Write)}


def detect_format(source):
    return find_source(write_options(source))[0]


def test_an_option_that_only_other_kinds_read_is_refused_with_their_names(tmp_path):
    options = write_options(tmp_path, images=tmp_path)
    check_options(options, name="coco")
    with pytest.raises(ValueError, match=rf"--images is read with --format coco or table, but {tmp_path} is folder"):
        check_options(options, name="folder")


def test_a_kind_from_outside_is_asked_before_those_inside(tmp_path, monkeypatch):
    assert detect_format(str(tmp_path)) == "folder"
    module = type(sys)("outside")
    module.FORMAT = SourceFormat(open=lambda options, index_folder: {}, recognise=lambda path: path == tmp_path)
    monkeypatch.setitem(sys.modules, "outside", module)
    monkeypatch.setitem(FORMATS, "outside", "outside")
    assert detect_format(str(tmp_path)) == "outside"


def test_a_source_of_two_kinds_is_asked_about_with_both_formats(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "old.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=r"a folder of images \(--format folder\), shards \(--format webdataset\): say which"
    ):
        detect_format(tmp_path)
    (tmp_path / "manifest.json").touch()
    assert detect_format(tmp_path) == "webdataset"


def test_a_special_kind_is_chosen_over_a_general_one_in_whatever_wraps_it(tmp_path):
    for name in ("read.me", "set/images/1.jpg", "set/masks/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert find_source(write_options(tmp_path)) == ("labels", str(tmp_path / "set"))
    assert find_source(write_options(tmp_path, format="labels")) == ("labels", str(tmp_path / "set"))
    assert find_source(write_options(tmp_path, format="folder")) == ("folder", str(tmp_path))


def test_only_a_drawn_kind_is_named_by_the_source_itself(tmp_path, monkeypatch):
    assert detect_format("scenes") == "scenes"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert detect_format("folder") == "folder"
    with pytest.raises(ValueError, match="but coco is missing"):
        detect_format("coco")


def test_the_registry_and_the_options_import_no_torch():
    modules = ("data.sources.registry", "data.sources.config", "data.commands.config")
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
