"""The program's own refusal comes before anything is queued; one that cannot look is no refusal."""

from dataclasses import replace

import pytest

from engine.errors import UserError
from launch import program_check
from launch.program_calls import check_call
from launch.program_check import check_with_programs

RAISING = """
from engine.errors import PassingError, UserError, one_line_errors
@one_line_errors
def main():
    raise {}
main()
"""


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
        "import sys; *options, recipe = sys.argv[1:]; assert options == ['check', '--recipe']\n"
        "for _ in range(2): assert 'mask_ratio' in open(recipe).read()  # as finetune does, to find its task"
    )
    assert check_with_programs([call(script)]) == []


def test_its_refusal_is_handed_on_in_its_words(call):
    words = r"^backbone.name: timm has no architecture \(if .* right when the job starts: --skip-check\)$"
    with pytest.raises(UserError, match=words):
        check_with_programs([call(RAISING.format("UserError('backbone.name: timm has no architecture')"))])


def test_lines_of_the_resolved_recipe_are_not_named(call):
    error = "UserError('no architecture (backbone.name is set in ' + __import__('sys').argv[-1] + ', line 7)')"
    with pytest.raises(UserError, match=r"^no architecture \(if that"):
        check_with_programs([call(RAISING.format(error))])


def test_what_may_pass_or_the_login_node_lacks_is_no_refusal(call):
    for error in ("PassingError('the data does not answer')", "FileNotFoundError(2, 'does not answer', 'backbone')"):
        (reason,) = check_with_programs([call(RAISING.format(error))])
        assert reason.startswith("pretrain could not look at the recipe here: ")
        assert "does not answer" in reason


def test_a_program_that_takes_too_long_is_left_and_the_way_out_named(call, monkeypatch):
    monkeypatch.setattr(program_check, "TIMEOUT_S", 0.2)
    (reason,) = check_with_programs([call("import time; time.sleep(60)")])
    assert "in 0.2 s; --skip-check leaves that out" in reason


def test_a_program_that_does_not_start_here_is_no_refusal(call):
    (reason,) = check_with_programs([call("import nowhere")])
    assert "could not look at the recipe here: ModuleNotFoundError" in reason


def test_other_programs_are_not_asked(call):
    assert check_with_programs([replace(call("raise SystemExit(1)"), program="data", recipe="")]) == []
