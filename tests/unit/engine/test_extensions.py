"""Files from outside the packages: imported before options are read, by their path, and never twice."""

import pickle
import sys

import pytest

from engine.errors import UserError
from engine.extensions import PREFIX, extension_arguments, load_extensions, loaded_extensions


@pytest.fixture(autouse=True)
def forget_extensions():
    yield
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]


@pytest.fixture
def extension(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_extensions_are_imported_once_and_leave_the_other_arguments(extension):
    one = extension("import sys; sys.modules.setdefault('extension_counter', []).append(__name__)", "one.py")
    two = extension("x = 1", "two.py")
    argv = ["train", "--extension", one, "--data.shards", "x", f"--extension={two}", "--extension", one]
    assert load_extensions(argv) == ["train", "--data.shards", "x"]
    assert sys.modules["extension_counter"] == ["extension_one"]
    assert sys.modules["extension_two"].x == 1


def test_loaded_extensions_are_handed_on_to_another_process(extension):
    one, two = extension("", "one.py"), extension("", "two.py")
    load_extensions(["--extension", one, "--extension", two])
    assert extension_arguments(loaded_extensions()) == ["--extension", one, "--extension", two]


def test_what_an_extension_defines_can_be_pickled(extension):
    load_extensions(["--extension", extension("class Thing:\n    size = 3\n")])
    thing = sys.modules["extension_mine"].Thing()
    assert pickle.loads(pickle.dumps(thing)).size == 3


@pytest.mark.parametrize("given", [[], [""], ["nowhere.py"], ["."], ["pyproject.toml"]])
def test_what_is_no_python_file_is_refused(given):
    with pytest.raises(UserError, match="--extension takes a Python file, got"):
        load_extensions(["--extension", *given])


def test_two_files_of_one_name_are_refused(extension):
    load_extensions(["--extension", extension("")])
    with pytest.raises(UserError, match="has the same name and is loaded already; rename one"):
        load_extensions(["--extension", extension("", "other/mine.py")])


def test_a_bug_in_an_extension_keeps_its_place_and_leaves_nothing(extension):
    with pytest.raises(ValueError, match="unpack") as caught:
        load_extensions(["--extension", extension("first, second = (1, 2, 3)")])
    assert not isinstance(caught.value, UserError)
    assert caught.traceback[-1].path.name == "mine.py"
    assert "extension_mine" not in sys.modules
