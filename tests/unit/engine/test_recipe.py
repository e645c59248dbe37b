"""Recipes: what is accepted, what is refused, and with which words."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from engine.config import overriding
from engine.documents import line_numbers
from engine.errors import REFUSAL, UserError
from engine.recipe import dump, find_recipe, origins, parse, plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    shift: int = -3
    lr: float = 1e-4
    flag: bool = True
    path: Path | None = None
    text: str = ""
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.lr > 1:
            raise ValueError(f"inner.lr must be at most 1, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """An example."""

    steps: int
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Refusing:
    """An example."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"steps must not be negative, got {self.steps}")


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "r.yaml") -> list[str]:
        (tmp_path / name).write_text(text)
        return ["--recipe", str(tmp_path / name)]

    return write


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("inner: {sizes: [3, 4, 5]}", {"sizes": (3, 4, 5)}),
        ("inner: {sizes: [-1, 2]}", {"sizes": (-1, 2)}),
        ("inner: {sizes: []}", {"sizes": ()}),
        ("inner: {names: [a, '1e3', 'null']}", {"names": ("a", "1e3", "null")}),
        ("inner: {shift: -7}", {"shift": -7}),
        ("inner: {lr: 1e-5}", {"lr": 1e-5}),
        ("inner: {flag: false}", {"flag": False}),
        ("inner: {path: null}", {"path": None}),
        ("inner: {path: /x y/z}", {"path": Path("/x y/z")}),
        ("inner: {text: '--looks-like-an-option'}", {"text": "--looks-like-an-option"}),
        ("inner: {text: '1e3'}", {"text": "1e3"}),
        ("inner: {kind: b}", {"kind": "b"}),
    ],
)
def test_values_are_typed(write, text, changed):
    assert parse(Outer, [*write(text), "--steps", "1"]).inner == Inner(**changed)


def test_command_line_wins_wherever_it_stands(write):
    assert parse(Outer, [*write("steps: 2"), "--steps", "3"]).steps == 3
    assert parse(Outer, ["--steps=3", *write("steps: 2")]).steps == 3


def test_later_recipe_wins(write):
    assert parse(Outer, [*write("steps: 2"), *write("steps: 5", "late.yaml")]).steps == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner: {siezs: [1]}", "r.yaml: unknown key 'inner.siezs'; did you mean 'inner.sizes'?"),
        ("zzz: 1", "unknown key 'zzz'; known keys: steps, inner"),
        ("inner: 3", "'inner' takes a mapping, got 3"),
        ("steps: {a: 1}", "'steps' takes one value, got {'a': 1}"),
        ("- a", "expected a mapping at the top, got a list"),
        ("steps: 1\nsteps: 2", "line 2: key 'steps' appears twice"),
        ("inner: {names: [-y]}", "'inner.names' has the item '-y'"),
        ("a: [", "r.yaml: line 1: expected YAML, but while parsing"),
    ],
)
def test_bad_recipe_names_file_and_key(write, text, words):
    with pytest.raises(SystemExit) as stop:
        parse(Outer, write(text))
    assert words in str(stop.value)


def test_missing_file_is_named():
    with pytest.raises(SystemExit, match=r"nowhere\.yaml"):
        parse(Outer, ["--recipe", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: lots", "Error parsing --steps"),
        ("inner: {lr: 2.0}\nsteps: 1", "inner.lr must be at most 1, got 2.0"),
        ("inner: {kind: c}\nsteps: 1", "invalid choice 'c'"),
        ("inner: {lr: 0.5}", "--steps INT"),
    ],
)
def test_bad_value_is_explained(write, capsys, text, words):
    with pytest.raises(SystemExit):
        parse(Outer, write(text))
    shown = capsys.readouterr().err
    assert words in shown
    assert "r.yaml" in shown


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("steps: -1", "steps must not be negative"),
        ("stepz: 1", "unknown key 'stepz'"),
        ("steps: lots", "an option does not fit"),
        ("steps: 1", None),
    ],
)
def test_launcher_is_told_of_options_that_would_be_refused_again(write, tmp_path, monkeypatch, text, noted):
    refusal = tmp_path / "refusal"
    monkeypatch.setenv(REFUSAL, str(refusal))
    with contextlib.suppress(SystemExit):
        parse(Refusing, write(text))
    assert refusal.exists() == (noted is not None)
    assert noted is None or noted in refusal.read_text()


def test_dump_round_trips(write):
    inner = Inner(sizes=(-1, 2), names=("y", "1e3", "null"), path=Path("/a"), text="--x", lr=1e-5)
    config = Outer(steps=5, inner=inner)
    assert parse(Outer, write(dump(config))) == config


def test_a_recipe_in_one_sub_folder_is_found_by_its_place_before(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.yaml").write_text("steps: 3")
    assert parse(Outer, ["--recipe", str(tmp_path / "a.yaml")]).steps == 3
    (tmp_path / "a.yaml").write_text("steps: 4")
    assert parse(Outer, ["--recipe", str(tmp_path / "a.yaml")]).steps == 4


def test_a_recipe_in_two_sub_folders_is_refused_with_both(tmp_path):
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("steps: 3")
    with pytest.raises(SystemExit, match=f"{tmp_path / 'large/a.yaml'}, {tmp_path / 'small/a.yaml'}; name one"):
        parse(Outer, ["--recipe", str(tmp_path / "a.yaml")])


def test_a_recipe_that_is_nowhere_is_named_as_it_was_given(tmp_path):
    with pytest.raises(SystemExit, match=rf"{tmp_path / 'a.yaml'}: No such file or directory; check its name"):
        parse(Outer, ["--recipe", str(tmp_path / "a.yaml")])


@dataclass(frozen=True, kw_only=True)
class Length:
    epochs: float = 8.0
    steps: int | None = overriding("epochs")


@dataclass(frozen=True, kw_only=True)
class Lengthy:
    """A config with two ways to say one thing."""

    length: Length = field(default_factory=Length)


@pytest.mark.parametrize(
    ("recipes", "options", "steps"),
    [
        (["length: {steps: 20}"], ["--length.epochs", "2"], None),
        (["length: {steps: 20}"], ["--length.epochs=2"], None),
        (["length: {steps: 20}", "length: {epochs: 2}"], [], None),
        (["length: {epochs: 2}", "length: {steps: 20}"], [], 20),
        (["length: {steps: 20, epochs: 2}"], [], 20),
        (["length: {epochs: 3}"], ["--length.steps", "5"], 5),
        ([], ["--length.steps", "5", "--length.epochs", "2"], None),
        ([], ["--length.epochs", "2", "--length.steps", "5"], 5),
    ],
)
def test_what_is_given_later_wins_over_its_rival(write, recipes, options, steps):
    argv = [word for number, text in enumerate(recipes) for word in write(text, f"{number}.yaml")]
    config = parse(Lengthy, [*argv, *options])
    assert config.length.steps == steps
    assert parse(Lengthy, [], below=plain(config)) == config


def test_home_is_expanded_in_recipes_and_options(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    argv = write("inner: {path: ~/a, names: [~/b, c~]}")
    config = parse(Outer, [*argv, "--steps", "1", "--inner.text=~/c"])
    assert (config.inner.path, config.inner.names) == (Path("/home/me/a"), ("/home/me/b", "c~"))
    assert config.inner.text == "/home/me/c"
    assert parse(Outer, [*argv, "--steps", "1", "--inner.path", "~/d"]).inner.path == Path("/home/me/d")


def test_shipped_recipe_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swin_tiny").mkdir()
    assert find_recipe(Path("swin_tiny"), program="pretrain").parts[-3:] == ("pretrain", "recipes", "swin_tiny.yaml")
    assert find_recipe(Path("vit_base.yaml"), program="pretrain").parts[-2:] == ("vit", "vit_base.yaml")
    (tmp_path / "vit_base.yaml").touch()
    assert find_recipe(Path("vit_base.yaml"), program="pretrain") == Path("vit_base.yaml")


def test_wrong_recipe_name_lists_the_recipes():
    with pytest.raises(UserError, match=r"no recipe swin_tinny; did you mean swin_tiny.*one of .*vit_large"):
        find_recipe(Path("swin_tinny"), program="pretrain")


def test_refused_option_names_the_recipes_line(write):
    argv = write("# made by hand\nsteps: 1\ninner:\n  lr: 5\n  flag: true\n")
    assert origins("inner.lr must be small", argv).endswith("r.yaml, line 4)")
    assert origins("inner.lr must be small", [*argv, "--inner.lr", "6"]) == "inner.lr must be small"
    assert origins("inner.size must be small", argv) == "inner.size must be small"
    assert line_numbers(b"a:\n  b: 1\nc: 2") == {"a": 1, "a.b": 2, "c": 3}
