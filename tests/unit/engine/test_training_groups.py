"""Micro-batches that share a forward pass are still told apart: the same steps, each resumable, each left out alone."""

import pytest
import torch

from engine.checkpoint.store import newest_checkpoint
from tests.tiny_run import MICRO_BATCHES, config_of, lines, run_tiny, same, tensors


@pytest.mark.parametrize("per_forward", [2, 3, 4, 9])
@pytest.mark.parametrize("poisoned", [set(), {(5, 2)}, {(4, 0), (4, 1)}, {(7, 3)}])
def test_groups_change_nothing_but_the_order_of_sums(tmp_path, per_forward, poisoned):
    """Two that are left out may be all of a group."""
    alone = run_tiny(config_of(tmp_path / "alone"), poisoned=poisoned)
    together = run_tiny(config_of(tmp_path / "together"), poisoned=poisoned, per_forward=per_forward)
    assert together.recovery.skipped == alone.recovery.skipped == poisoned
    one, two = tensors(tmp_path / "alone"), tensors(tmp_path / "together")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "skipped_micro_batches"):
        both = [[line[name] for line in lines(tmp_path / run / "metrics.jsonl")] for run in ("alone", "together")]
        assert both[0] == pytest.approx(both[1], rel=1e-5)


def test_every_micro_batch_is_in_one_group_in_order(tmp_path):
    training = run_tiny(config_of(tmp_path / "run"), per_forward=3)
    assert [list(group) for group in training.groups()] == [[0, 1, 2], [3]]
    assert len(training.micro_batches) == MICRO_BATCHES


def test_a_killed_run_of_groups_resumes_to_the_same_bits_and_may_change_them(tmp_path):
    run_tiny(config_of(tmp_path / "whole"), per_forward=2, poisoned={(4, 1)})
    run_tiny(config_of(tmp_path / "killed"), per_forward=2, poisoned={(4, 1)}, until=5)
    run_tiny(config_of(tmp_path / "killed"), per_forward=2, poisoned={(4, 1)})
    assert same(tmp_path / "whole", tmp_path / "killed")
    run_tiny(config_of(tmp_path / "moved"), per_forward=2, until=4)
    run_tiny(config_of(tmp_path / "moved"), per_forward=4)


def break_once(at_step):
    """Return a fault of the machine for ``before_step``: weights that are no numbers for one step, and never again."""
    struck = []

    def strike(training, step):
        if step == at_step and not struck:
            struck.append(step)
            with torch.no_grad():
                next(training.engine.module.parameters()).fill_(float("nan"))

    return strike


@pytest.mark.parametrize("at_step", [1, 4, 7])
def test_steps_that_were_repeated_one_by_one_for_nothing_are_done_again_together(tmp_path, at_step):
    run_tiny(config_of(tmp_path / "whole"), per_forward=2)
    training = run_tiny(config_of(tmp_path / "struck"), per_forward=2, before_step=break_once(at_step))
    assert (training.recovery.rewinds, training.recovery.skipped) == (1, set())
    assert same(tmp_path / "whole", tmp_path / "struck")


def test_a_stop_while_steps_are_repeated_one_by_one_saves_nothing_of_them(tmp_path):
    run_tiny(config_of(tmp_path / "whole"), per_forward=2, poisoned={(5, 2)})
    config = config_of(tmp_path / "stopped")

    def stop_in_search(training, step):
        if training.recovery.searching and step == 4:
            (tmp_path / "stopped" / "STOP").touch()

    stopped = run_tiny(config, per_forward=2, poisoned={(5, 2)}, before_step=stop_in_search)
    assert stopped.stopped
    assert newest_checkpoint(tmp_path / "stopped" / "checkpoints").step == 3
    run_tiny(config, per_forward=2, poisoned={(5, 2)})
    assert same(tmp_path / "whole", tmp_path / "stopped")
