"""The program's own refusal comes before anything is queued; one that cannot look is no refusal."""

from dataclasses import replace

import pytest

from engine.errors import UserError
from launch import program_check
from launch.program_calls import check_call
from launch.program_check import check_with_programs


@pytest.fixture
def call(options, tmp_path, monkeypatch):
    """A call whose program is a script of the test's."""
    call = replace(check_call("pretrain", options, num_processes=1), extensions=())  # that other tests have loaded

    def answering(script):
        path = tmp_path / "pretrain" / "main.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        monkeypatch.setattr(program_check.Call, "script", path)
        return call

    return answering


def test_the_program_gets_the_resolved_recipe(call):
    script = (
        "import sys; assert sys.argv[1:] == ['check', '--recipe', '/dev/stdin'] and 'mask_ratio' in sys.stdin.read()"
    )
    assert check_with_programs([call(script)]) == []


def test_its_refusal_is_handed_on_in_its_words(call):
    with pytest.raises(UserError, match=r"^backbone.name: timm has no architecture$"):
        check_with_programs([call("import sys; sys.exit('x\\nerror: backbone.name: timm has no architecture')")])


def test_a_program_that_does_not_start_here_is_no_refusal(call):
    (reason,) = check_with_programs([call("import nowhere")])
    assert "could not look at the recipe here: ModuleNotFoundError" in reason


def test_other_programs_are_not_asked(call):
    assert check_with_programs([replace(call("raise SystemExit(1)"), program="data", recipe="")]) == []
