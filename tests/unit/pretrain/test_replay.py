"""``replay RECORD``: a pretraining run meets a poisoned sample, and its record repeats it without shards."""

import dataclasses
import sys

import pytest
import torch

from pretrain import app, trainer
from pretrain import replay as replay_module
from pretrain.model.greenmim import build_model
from pretrain.replay import replay


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Builds what the real builder does, but for one micro-batch whose first image is white."""

    builder: object

    def __call__(self, samples, *, step, micro_batch):
        content = self.builder(samples, step=step, micro_batch=micro_batch)
        if (step, micro_batch) == (3, 1):
            content["images"][0] = 255
        return content


def build_fragile_model(config, **options):
    """A network that fails on a white image."""
    model = build_model(config, **options)

    def explode(module, inputs, output):
        white = (inputs[0].flatten(1) == 255).all(1).view(-1, 1, 1, 1)
        return torch.where(white, output * 3e38, output)

    model.pixels.register_forward_hook(explode)
    return model


def test_a_record_repeats_the_failing_micro_batch_and_shows_where_it_goes_wrong(micro, tmp_path, monkeypatch, capsys):
    real = trainer.builder_of
    monkeypatch.setattr(trainer, "builder_of", lambda config, model: Whitening(real(config, model)))
    monkeypatch.setattr(trainer, "finish", lambda *args, **kwargs: None)
    for module in (trainer, replay_module):
        monkeypatch.setattr(module, "build_model", build_fragile_model)
    trainer.train(micro(distributed={"precision": "bf16"}))
    record = tmp_path / "run" / "non_finite" / "step-000000003" / "micro-batch-00001.json"
    monkeypatch.setattr(sys, "argv", ["main.py", "replay", str(record)])
    monkeypatch.setenv("COLUMNS", "160")
    app.main()
    said = capsys.readouterr().out
    assert "micro-batch 1 of step 3" in said
    assert "with the weights that it met, after step 3" in said
    assert "images" in said
    assert "Pixels" in said
    assert "in bf16: loss" in said
    assert "in fp32: loss" in said
    assert [line for line in said.splitlines() if "│ NO" in line]
    for path in (record, record.with_suffix(".safetensors")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="does not lie in a run folder"):
        replay(tmp_path / record.name)
