"""The record of what micro-batches were made of: through kills, and of what was left out."""

import pytest
import torch

from engine.run.sample_log import SampleLog, read_sample_logs


def note(folder, step, ids, *, rank=0, **batch):
    with SampleLog.open(folder, rank=rank, enabled=True, names=("ids",)) as log:
        log.note(step, rank, {"ids": torch.tensor(ids), "bad": [], **batch})


def test_a_line_cut_short_is_passed_over_and_spoils_no_other(tmp_path):
    note(tmp_path, 0, [1, 2])
    with (tmp_path / "samples-00000.jsonl").open("a") as file:
        file.write('{"step": 1, "micro_batch": 0, "ids": [3')
    note(tmp_path, 1, [3, 4])
    found = read_sample_logs(tmp_path)
    assert found[0, 0] == '{"step": 0, "micro_batch": 0, "ids": [1, 2], "bad": []}'
    assert found[1, 0] == '{"step": 1, "micro_batch": 0, "ids": [3, 4], "bad": []}'


def test_steps_that_were_done_twice_must_have_had_the_same_samples(tmp_path):
    note(tmp_path, 0, [1, 2])
    note(tmp_path, 0, [1, 2])
    note(tmp_path, 0, [5, 6], rank=1)
    assert set(read_sample_logs(tmp_path)) == {(0, 0), (0, 1)}
    note(tmp_path, 0, [1, 7])
    with pytest.raises(ValueError, match="step 0, micro-batch 0 was made of other samples the second time"):
        read_sample_logs(tmp_path)


def test_what_was_left_out_counts_as_left_out(tmp_path):
    note(tmp_path, 3, [1, 2])
    note(tmp_path, 3, [9, 9], skipped=True)
    assert read_sample_logs(tmp_path) == {(3, 0): '{"step": 3, "micro_batch": 0, "skipped": true}'}
