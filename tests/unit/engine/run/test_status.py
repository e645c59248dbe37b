"""How a run stands, from its folder alone."""

import io
import json
import subprocess
import sys
import time

import pytest
from rich.console import Console

from engine.run.lock import RunLock
from engine.run.status import format_seconds, read_status, status


def run_folder(path, *, steps=(2, 4, 6), total_steps=10, checkpoint=4):
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("a: 1\n")
    with (path / "metrics.jsonl").open("w") as file:
        for step in steps:
            line = {"step": step, "total_steps": total_steps, "time": time.time() - 60, "images_per_s": 12.5}
            file.write(json.dumps({**line, "seconds": 20.0, "loss": 1 / step}) + "\n")
            file.write(json.dumps({"step": step, "knn": 0.5}) + "\n")
        file.write('{"step": 8, "tot')
    if checkpoint:
        (path / "checkpoints" / f"step-{checkpoint:09d}").mkdir()
        (path / "checkpoints" / f"step-{checkpoint + 2:09d}.partial").mkdir()
    return path


def shown(path):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status(path))
    return console.export_text()


def test_a_run_that_stands_still(tmp_path):
    text = shown(run_folder(tmp_path / "x"))
    for words in ("not running", "6 of 10", "40 s", "12.5 images/s", "0.1667", "step 4, 0 s ago", "1 min 00 s ago"):
        assert words in text


def test_a_run_that_runs_names_its_process(tmp_path):
    path = run_folder(tmp_path / "x")
    lock = RunLock(path)
    lock.acquire()
    assert "running: process" in shown(path)
    lock.release()
    assert "not running" in shown(path)


def test_a_finished_run(tmp_path):
    assert "finished" in shown(run_folder(tmp_path / "x", steps=(5, 10)))


def test_a_run_before_its_first_report(tmp_path):
    path = run_folder(tmp_path / "x", steps=(), checkpoint=0)
    assert "no report yet" in shown(path)
    assert "none yet" in shown(path)
    assert read_status(path).seconds_left == 0


def test_a_pause_between_two_runs_does_not_count_as_training(tmp_path):
    path = run_folder(tmp_path / "x", steps=(2, 4))
    later = {"step": 6, "total_steps": 10, "time": time.time() + 1e6, "images_per_s": 1.0, "seconds": 10.0}
    with (path / "metrics.jsonl").open("w") as file:
        for step in (2, 4):
            line = {"step": step, "total_steps": 10, "time": 0, "images_per_s": 1.0, "seconds": 10.0}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps(later) + "\n")
    assert read_status(path).seconds_left == 20


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder: expected config.yaml"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "7 s"), (306, "5 min 06 s"), (11_040, "3 h 04 min"), (93_600, "1 d 02 h")]
)
def test_durations_read_well(seconds, text):
    assert format_seconds(seconds) == text


def test_status_and_run_folder_need_no_torch():
    code = "import sys, engine.run.status, engine.run.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
