"""``replay RECORD``: a pretraining run meets a poisoned sample, and its record repeats it without shards."""

import dataclasses
import sys

import pytest

from pretrain import app, trainer
from pretrain.replay import replay


@dataclasses.dataclass(frozen=True)
class Poisoning:
    """Builds what the real builder does, but for one micro-batch whose first picture holds numbers past all bounds."""

    builder: object

    def __call__(self, samples, *, step, micro_batch):
        content = self.builder(samples, step=step, micro_batch=micro_batch)
        if (step, micro_batch) == (3, 1):
            content["images"] = content["images"].float()
            content["images"][0] = 1e38
        return content


def test_a_record_repeats_the_failing_micro_batch_and_shows_where_it_goes_wrong(micro, tmp_path, monkeypatch, capsys):
    real = trainer.builder_of
    monkeypatch.setattr(trainer, "builder_of", lambda config, model: Poisoning(real(config, model)))
    monkeypatch.setattr(trainer, "finish", lambda *args, **kwargs: None)
    trainer.train(micro(distributed={"precision": "bf16"}))
    record = tmp_path / "run" / "non_finite" / "step-000000003" / "micro-batch-00001.json"
    monkeypatch.setattr(sys, "argv", ["main.py", "replay", str(record)])
    monkeypatch.setenv("COLUMNS", "160")
    app.main()
    said = capsys.readouterr().out
    assert "micro-batch 1 of step 3" in said
    assert "with the weights that it met, after step 3" in said
    assert "1e+38" in said
    assert "in bf16: loss" in said
    assert "in fp32: loss" in said
    assert [line for line in said.splitlines() if "│ NO" in line]
    for path in (record, record.with_suffix(".safetensors")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="does not lie in a run folder"):
        replay(tmp_path / record.name)
