"""The best weights are known after a restart from any checkpoint that is still there."""

import json

import pytest

from finetune.evaluation.log import EvaluationLog
from finetune.network.weights import best_folder, newest_best


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    return tmp_path


def measure(folder, log, step, top1, weights="raw"):
    """Do what a run does at an evaluation; return whether it kept the weights."""
    is_best = log.add(step=step, weights=weights, figures={"top1": top1, "loss": 1.0})
    if is_best:
        best_folder(folder, weights, step).mkdir(parents=True, exist_ok=True)
        log.keep(weights, step, result={"step": step, "top1": top1})
    return is_best


def test_the_first_of_equal_bests_is_kept(folder):
    log = EvaluationLog(folder, step=0, figure="top1")
    assert [measure(folder, log, step, top1) for step, top1 in ((1, 0.5), (2, 0.4), (3, 0.5), (4, 0.6))] == [1, 0, 0, 1]
    assert log.best_step("raw") == 4
    assert log.best_result("raw") == {"step": 4, "top1": 0.6}
    assert log.best_step("ema") is None
    assert log.best_result("ema") is None


def test_bests_up_to_each_checkpoint_are_kept_and_others_dropped(folder):
    log = EvaluationLog(folder, step=0, figure="top1")
    for step, top1 in enumerate((0.1, 0.2, 0.3, 0.25, 0.5, 0.6), start=1):
        measure(folder, log, step, top1)
    kept = sorted(path.name for path in (folder / "best").iterdir() if path.is_dir())
    assert kept == ["raw-step-000000002", "raw-step-000000003", "raw-step-000000006"]  # until 2, until 4, of all


def test_a_restarted_run_forgets_what_came_after_its_checkpoint(folder):
    log = EvaluationLog(folder, step=0, figure="top1")
    for step, top1 in enumerate((0.1, 0.2, 0.3, 0.25, 0.5), start=1):
        measure(folder, log, step, top1)
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 6, "wei')  # a line cut short by a kill
    again = EvaluationLog(folder, step=4, figure="top1")
    assert again.best_step("raw") == 3
    assert again.best_result("raw") == {"step": 3, "top1": 0.3}
    assert not best_folder(folder, "raw", 5).exists()
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert measure(folder, again, 5, 0.5)


def test_measuring_a_step_again_replaces_its_line(folder):
    log = EvaluationLog(folder, step=0, figure="top1")
    measure(folder, log, 1, 0.5)
    measure(folder, log, 2, 0.3)
    assert measure(folder, log, 1, 0.4)  # with its weights: a run that went back has others
    assert log.best_result("raw") == {"step": 1, "top1": 0.4}
    assert not measure(folder, log, 2, 0.3)
    assert len(log.lines) == 2


def test_a_folder_without_its_scores_is_absent_and_goes(folder):
    """A kill came between writing the two."""
    log = EvaluationLog(folder, step=0, figure="top1")
    measure(folder, log, 3, 0.5)
    best_folder(folder, "raw", 5).mkdir(parents=True)
    assert newest_best(folder, "raw") == best_folder(folder, "raw", 3)
    EvaluationLog(folder, step=4, figure="top1")
    assert [path.name for path in (folder / "best").iterdir() if path.is_dir()] == ["raw-step-000000003"]


def test_a_log_of_the_old_name_is_gone_on_with(folder):
    line = {"step": 1, "weights": "raw", "top1": 0.5, "loss": 1.0}
    (folder / "accuracy.jsonl").write_text(json.dumps(line) + "\n")
    log = EvaluationLog(folder, step=1, figure="top1")
    assert log.best_step("raw") == 1
    assert not measure(folder, log, 2, 0.4)
    assert [json.loads(text)["step"] for text in (folder / "evaluations.jsonl").read_text().splitlines()] == [1, 2]
    assert not (folder / "accuracy.jsonl").exists()


def test_damaged_lines_and_scores_cost_no_run(folder, caplog):
    log = EvaluationLog(folder, step=0, figure="top1")
    measure(folder, log, 1, 0.5)
    with (folder / "evaluations.jsonl").open("ab") as file:
        file.write(b'[1]\n{"step": "x", "weights": "raw"}\n{"step": 2}\n\xff\x00\n{"step": 3, "weights": "raw"}\n')
    (folder / "best" / "raw-step-000000001.json").write_text('{"step": 1, "to')
    again = EvaluationLog(folder, step=4, figure="top1")
    assert [line["step"] for line in again.lines] == [1, 3]
    assert again.best_step("raw") == 1
    assert again.best_result("raw") is None
    assert "raw-step-000000001.json: expected JSON" in caplog.text
