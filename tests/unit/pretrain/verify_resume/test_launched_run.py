"""A run as a program of its own: what it is given."""

from engine.errors import REFUSAL
from pretrain.verify_resume.launched_run import LaunchedRun, ProcessLayout


def test_refusal_of_a_run_is_not_noted_as_the_proofs(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(f"import os; raise SystemExit({REFUSAL!r} in os.environ or 'HOME' not in os.environ)")
    monkeypatch.setenv(REFUSAL, str(tmp_path / "refusal"))
    monkeypatch.setenv("HOME", str(tmp_path))
    layout = ProcessLayout(processes=1, engine="single")
    assert LaunchedRun(tmp_path / "run", layout=layout, arguments=(), program=program).process.wait() == 0
