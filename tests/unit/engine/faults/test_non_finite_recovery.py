"""A micro-batch that is not finite: found, written down, left out; and nothing else changes."""

import errno
import json

import pytest
import torch

from engine.checkpoint.store import newest_checkpoint, open_checkpoint
from engine.faults.non_finite_record import NonFiniteRecord
from engine.loop.micro_batch_feed import MicroBatchFeed
from engine.loop.optimizer import Schedule, build_optimizer
from tests.tiny_run import MICRO_BATCHES, STEPS, TinyNet, config_of, lines, numbers, run_tiny, same, tensors


def plain_training(config, *, skipped):
    """The same steps without any of this machinery: the mean over the micro-batches that count."""
    model = TinyNet()
    optimizer = build_optimizer(model, config.optimizer, batch_size=config.data.batch_size)
    schedule = Schedule(config.optimizer, batch_size=config.data.batch_size, steps_per_epoch=STEPS)
    norm = model.body[1]
    for step in range(STEPS):
        counted = [number for number in range(MICRO_BATCHES) if (step, number) not in skipped]
        kept = norm.running_mean.clone(), norm.running_var.clone()
        statistics = []
        optimizer.zero_grad()
        for number in counted:
            norm.running_mean.zero_(), norm.running_var.zero_()
            norm.momentum = 1.0
            (model(numbers((step, number))) / len(counted)).backward()
            statistics.append((norm.running_mean.clone(), norm.running_var.clone()))
        for buffer, before, new in zip(
            (norm.running_mean, norm.running_var), kept, zip(*statistics, strict=True), strict=True
        ):
            buffer.copy_(0.9 * before + 0.1 * torch.stack(new).mean(0))
        for group, lr in zip(optimizer.param_groups, schedule.lrs(optimizer, step), strict=True):
            group["lr"] = lr
        optimizer.step()
    return model


@pytest.mark.parametrize("poisoned", [{(5, 2)}, {(1, 0)}, {(4, 1), (4, 3), (7, 3)}])
def test_a_poisoned_micro_batch_has_weight_zero_in_its_steps_mean(tmp_path, poisoned, caplog):
    """Before the first checkpoint, between two, several in a step, the last one of all."""
    config = config_of(tmp_path / "run")
    training = run_tiny(config, poisoned=poisoned)
    assert training.recovery.skipped == poisoned
    reference, found = plain_training(config, skipped=poisoned), tensors(tmp_path / "run")
    for name, value in reference.state_dict().items():
        kind = "buffer" if "running" in name or "num_batches" in name else "weight"
        if "num_batches" not in name:
            torch.testing.assert_close(found[kind, name], value, rtol=1e-5, atol=1e-6)


def test_all_of_it_is_said_and_written_down(tmp_path, caplog):
    training = run_tiny(config_of(tmp_path / "run"), poisoned={(5, 2)})
    assert "left out from now on: micro-batch 2 of step 5" in caplog.text
    path = tmp_path / "run" / "non_finite" / "step-000000005" / "micro-batch-00002.json"
    record, batch = NonFiniteRecord.read(path)
    assert (record.step, record.micro_batch, record.rank, record.world_size) == (5, 2, 0, 1)
    assert record.first_module == "body.0"
    assert record.samples[1] == {"id": 67, "key": "picture-67", "shard": "shard-6.tar"}
    assert [line["step"] for line in record.recent_metrics] == [2, 4]
    assert batch["x"][1].tolist() == pytest.approx([3e38] * 5)
    weights = open_checkpoint(path.parent / "weights" / "step-000000005")
    assert set(weights.names("weight")) == {name for name, _ in training.engine.module.named_parameters()}
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == [2, 4, 6, 8]
    assert [line["skipped_micro_batches"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 1, 1]
    notes = lines(tmp_path / "run" / "samples-00000.jsonl")
    assert [note.get("skipped", False) for note in notes if (note["step"], note["micro_batch"]) == (5, 2)] == [
        False,  # seen
        False,  # found
        True,
    ]


@pytest.mark.parametrize("killed_after", [4, 6, 7])
def test_a_run_with_a_skipped_micro_batch_resumes_to_the_same_bits(tmp_path, killed_after):
    run_tiny(config_of(tmp_path / "whole"), poisoned={(4, 1)})
    run_tiny(config_of(tmp_path / "killed"), poisoned={(4, 1)}, until=killed_after)
    training = run_tiny(config_of(tmp_path / "killed"), poisoned={(4, 1)})
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert (training.recovery.rewinds, training.recovery.skipped) == (1, {(4, 1)})


def test_the_skip_list_is_part_of_every_checkpoint_after_it(tmp_path):
    run_tiny(config_of(tmp_path / "run", run={"keep_last": 9}), poisoned={(4, 1)})
    states = [open_checkpoint(path).state for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert [(state["step"], state["skipped"]) for state in states] == [(3, []), (6, [[4, 1]]), (8, [[4, 1]])]


def test_in_bf16_too(tmp_path):
    training = run_tiny(config_of(tmp_path / "run", distributed={"precision": "bf16"}), poisoned={(4, 1)})
    assert training.recovery.skipped == {(4, 1)}
    assert all(torch.isfinite(x).all() for x in tensors(tmp_path / "run").values())


def test_a_healthy_run_is_not_looked_at_and_changes_by_nothing(tmp_path):
    training = run_tiny(config_of(tmp_path / "run"))
    assert (training.recovery.rewinds, training.recovery.skipped) == (0, set())
    assert not (tmp_path / "run" / "non_finite").exists()
    assert not any(module._forward_hooks for module in training.engine.module.modules())


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_found_too(tmp_path, monkeypatch):
    class Kink(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.poisoned = bool((x > 1e30).any())
            return x.clamp(max=1.0)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf") if ctx.poisoned else gradient

    plain = TinyNet.forward
    monkeypatch.setattr(
        TinyNet,
        "forward",
        lambda self, x: plain(self, x.clamp(max=1.0)) + 0 * Kink.apply(x * self.head.bias[0] / self.head.bias[0]).sum(),
    )
    training = run_tiny(config_of(tmp_path / "run"), poisoned={(4, 1)})
    assert training.recovery.skipped == {(4, 1)}
    record, _ = NonFiniteRecord.read(tmp_path / "run" / "non_finite" / "step-000000004" / "micro-batch-00001.json")
    assert (record.first_module, record.first_parameter) == (None, "head.bias")
    assert record.loss < 100


def test_what_does_not_happen_again_is_said_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
    """A fault of the machine: the weights break once, after step 4."""
    struck = []

    def strike(training, step):
        if step == 4 and not struck:
            struck.append(step)
            with torch.no_grad():
                training.engine.module.head.weight[0, 0] = float("nan")

    training = run_tiny(config_of(tmp_path / "run"), before_step=strike)
    assert "all was finite in steps 4 to 5 this time" in caplog.text
    assert training.recovery.rewinds == 1
    run_tiny(config_of(tmp_path / "whole"))
    assert same(tmp_path / "whole", tmp_path / "run")


def test_weights_that_diverge_stop_the_run_and_are_not_blamed_on_the_data(tmp_path):
    with pytest.raises(
        ValueError, match=r"every micro-batch of step 4 is not finite, so the weights have diverged"
    ) as error:
        run_tiny(config_of(tmp_path / "run"), poisoned={(4, number) for number in range(MICRO_BATCHES)})
    assert "lower optimizer.base-lr" in str(error.value)
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 3


def test_more_than_the_allowed_rewinds_stop_the_run_naming_the_micro_batch(tmp_path):
    config = config_of(tmp_path / "run", run={"max_rewinds": 1})
    with pytest.raises(ValueError, match=r"micro-batch 3 of step 6 .*picture-81.*run.max-rewinds 1 allows no more"):
        run_tiny(config, poisoned={(4, 1), (6, 3)})
    training = run_tiny(config_of(tmp_path / "run", run={"max_rewinds": 2}), poisoned={(4, 1), (6, 3)})
    assert training.recovery.skipped == {(4, 1), (6, 3)}


def test_a_record_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(ValueError, match=r"is no record of a micro-batch: .*expected runs/x/non_finite/step-"):
        NonFiniteRecord.read(tmp_path / "x.json")


def test_a_process_whose_only_micro_batch_of_the_last_step_is_left_out_gets_an_earlier_one():
    class Batches:
        def restart(self, *, first_step, skip):
            self.steps = iter([step for step in range(first_step, 4) if (step, 0) not in skip])

        def __iter__(self):
            return self

        def __next__(self):
            return {"x": next(self.steps), "bad": []}

    feed = MicroBatchFeed()
    feed.restart(first_step=3, skip={(3, 0), (2, 0)})
    assert feed.take(Batches(), key=(3, 0)) == {"x": 1, "bad": [], "skipped": True}
    feed.restart(first_step=3, skip={(step, 0) for step in range(4)})
    with pytest.raises(ValueError, match="every micro-batch of this process up to step 3 is left out"):
        feed.take(Batches(), key=(3, 0))


def test_a_full_disk_costs_the_record_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NonFiniteRecord, "write", full)
    training = run_tiny(config_of(tmp_path / "run"), poisoned={(4, 1)})
    assert training.recovery.skipped == {(4, 1)}
    assert "no record of micro-batch 1 of step 4" in caplog.text
    assert "No space left" in caplog.text


def test_a_batch_iterator_that_cannot_begin_again_is_named():
    feed = MicroBatchFeed()
    feed.restart(first_step=0, skip=())
    with pytest.raises(TypeError, match=r"use data.loading.loader.training_batches as it is"):
        feed.take(iter([{"x": 1}]), key=(0, 0))
