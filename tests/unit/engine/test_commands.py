"""Commands of programs: found by their first argument, explained without what they run with."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tyro

from engine import commands
from engine.commands import EXISTING_RUN, Command, option_help, run_program
from engine.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ("pretrain",)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    """Pixels of a side. More follows."""
    name: str
    """What it
    is called."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do something."""

    inner: Inner
    flag: bool = False
    """Whether it is."""
    others: tuple[int, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Place:
    """Look at a place."""

    path: tyro.conf.Positional[Path]
    """Where."""


RAN = []
COMMANDS = {
    "train": Command(
        "train it",
        options=f"{__name__}:Options",
        run=f"{__name__}:note",
        recipes=True,
        everyday=("inner.size", "inner.name", "flag"),
    ),
    "look": Command("look at it", options=f"{__name__}:Place", run=f"{__name__}:note", usage="PATH"),
    "raw": Command("take all", options=f"{__name__}:raw", run=f"{__name__}:note"),
    "existing": Command("look", options=EXISTING_RUN, run=f"{__name__}:note"),
}


def note(options):
    RAN.append(options)


def raw(argv, program):
    return program, list(argv)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    RAN.clear()
    monkeypatch.setattr(sys, "argv", ["/some/where/mine/main.py"])
    monkeypatch.setitem(
        sys.modules, __name__, sys.modules.get(__name__) or __import__("importlib").import_module(__name__)
    )


def run(*argv, default="train"):
    run_program(COMMANDS, about="A program.", default=default, argv=argv)
    return RAN[-1] if RAN else None


def test_the_first_argument_names_the_command_and_the_default_one_may_be_left_out(tmp_path):
    (tmp_path / "r.yaml").write_text("inner: {name: b, size: 5}")
    expected = Options(inner=Inner(name="b", size=7))
    assert run("train", "--recipe", str(tmp_path / "r.yaml"), "--inner.size", "7") == expected
    assert run("--recipe", str(tmp_path / "r.yaml"), "--inner.size", "7") == expected
    assert run("look", "here") == Place(path=Path("here"))
    assert run("raw", "--a", "b") == ("mine/main.py raw", ["--a", "b"])


def test_an_unknown_command_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="there is no command 'trian'; did you mean 'train'"):
        run("trian")
    with pytest.raises(UserError, match="there is no command '--x'; choose train, look, raw, existing"):
        run("--x", default=None)


def test_a_command_behind_its_options_is_refused_with_the_right_order():
    with pytest.raises(UserError, match=r"the command comes first: mine/main.py train --inner.name b"):
        run("--inner.name", "b", "train")


def test_the_value_of_an_option_may_be_called_like_a_command():
    assert run("--inner.name", "train") == Options(inner=Inner(name="train"))


def test_help_before_a_command_is_help_of_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help", "look")
    assert ended.value.code == 0
    assert "usage: mine/main.py look" in capsys.readouterr().out


def test_a_run_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"existing takes one run folder that exists, got /nowhere"):
        run("existing", "/nowhere")
    assert run("existing", str(tmp_path)).folder == tmp_path


@pytest.mark.parametrize("argv", [("--help",), ("-h",)])
def test_help_names_all_commands_and_the_everyday_options(argv, capsys):
    assert run(*argv) is None
    shown = capsys.readouterr().out
    assert "usage: mine/main.py [COMMAND] [OPTIONS]" in shown
    for words in ("train  ", "train it (the default)", "look PATH", "take all", "mine/main.py train --help"):
        assert words in shown
    assert "--inner.size  Pixels of a side (default: 3)" in shown
    assert "--inner.name  What it is called (required)" in shown


def test_only_rank_zero_shows_help(monkeypatch, capsys):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    run("--help")
    assert capsys.readouterr().out == ""


def test_every_command_has_help_of_its_own(capsys):
    for name, words in (("train", "Everyday options"), ("look", "Look at a place")):
        with pytest.raises(SystemExit) as ended:
            run(name, "--help")
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert f"usage: mine/main.py {name}" in shown
        assert words in shown


def test_the_help_of_an_option_is_what_stands_below_its_field():
    assert option_help(Options, "inner.size") == "Pixels of a side (default: 3)"
    assert option_help(Options, "flag") == "Whether it is (default: False)"


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_programs_is_quick_and_needs_no_torch(program):
    """Every command's run and options exist, and their help takes under a second of one processor."""
    script = (
        f"import sys, time; sys.argv = ['{program}/main.py', '--help']; start = time.process_time()\n"
        f"from {program}.app import main\n"
        "main()\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules), set(sys.modules)\n"
        "sys.exit(f'{time.process_time() - start}')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert float(done.stderr) < 1.0


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_of_the_programs_exists(program):
    for command in commands.resolve(f"{program}.app:COMMANDS").values():
        assert callable(commands.resolve(command.run))
        assert callable(commands.resolve(command.options))


def test_home_is_expanded_in_the_arguments_of_every_command(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    run_program(COMMANDS, about="x", argv=["look", "~/a"])
    assert RAN[-1].path == Path("/home/me/a")
    run_program(COMMANDS, about="x", argv=["raw", "--out=~/a", "--b", "c~"])
    assert RAN[-1][1] == ["--out=/home/me/a", "--b", "c~"]


def test_refusal_names_the_recipes_line_of_an_option(monkeypatch, tmp_path):
    (tmp_path / "r.yaml").write_text("inner:\n  name: a\n  size: 9\n")

    def refuse(_):
        raise UserError("inner.size must be even")

    monkeypatch.setattr(f"{__name__}.note", refuse)
    with pytest.raises(UserError, match=r"even \(inner.size is set in .*r.yaml, line 3\)"):
        run_program(COMMANDS, about="x", argv=["train", "--recipe", str(tmp_path / "r.yaml")])
