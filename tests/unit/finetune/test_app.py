"""The program's words, and its one line where a user has to act."""

import sys

import pytest

from finetune.app import main, with_shards
from finetune.trainer import train


def test_measuring_only_needs_no_training_shards():
    words = ["--eval-only", "runs/x", "--val-shards", "val"]
    assert with_shards(words) == [*words, "--data.shards", "val"]
    assert with_shards(["--eval_only=runs/x", "--val_shards=val"])[-2:] == ["--data.shards", "val"]
    assert with_shards([*words, "--data.shards", "train"]) == [*words, "--data.shards", "train"]
    assert with_shards(["--val-shards", "val"]) == ["--val-shards", "val"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data.shards", "missing", "--val-shards", "missing", "--backbone.name", "resnet18"],
            "missing is no folder",
        ),
        (["--data.shards", "x", "--val-shards", "x"], "nothing to start from"),
        (["results", "missing"], "results takes one run folder that exists, got missing"),
        (["status"], "status takes one run folder that exists, got nothing"),
    ],
)
def test_errors_are_one_line_and_exit_1(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_results_are_shown_again(monkeypatch, capsys, micro, tmp_path):
    train(micro(run={"folder": tmp_path / "run"}, optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None}))
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", "results", str(tmp_path / "run")])
    main()
    shown = capsys.readouterr().out
    assert "last raw" in shown
    assert "best raw" in shown
