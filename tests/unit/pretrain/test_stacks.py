"""Several micro-batches in one forward pass, each with its own mask: the same losses and gradients as one by one."""

import dataclasses
import json

import pytest
import torch

from backbones.build import layout_spec
from backbones.visible.layout import build_layout
from backbones.visible.stacking import VisibleStack
from engine.checkpoint.store import newest_checkpoint
from pretrain.batches.mask_inputs import mask_tensors
from pretrain.batches.masking import unit_mask
from pretrain.model.greenmim import build_model
from pretrain.model.model_inputs import model_inputs
from pretrain.trainer import train
from tests.unit.pretrain.test_backbones import BACKBONES

NAMES = {
    "swin": {},
    "swin_v2": {"name": "swinv2_tiny_window8_256"},
}


def batch_of(model, *, number, images=3):
    spec = layout_spec(model.encoder)
    mask = unit_mask(spec.units, mask_ratio=0.5, seed=0, step=0, micro_batch=number)
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (images, 3, *spec.img_size), dtype=torch.uint8, generator=generator)
    layout = build_layout(spec, mask.visible).to("cpu")
    return {"images": pixels, "layout": layout, **mask_tensors(mask, mask.visible_units)}


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_equals_its_micro_batches_one_by_one(name, micro):
    img_size = NAMES[name].get("img_size", (128, 128))
    config = micro(backbone={"drop_path": 0.0, **NAMES[name], "img_size": img_size})
    model = build_model(config).double()
    batches = [batch_of(model, number=number) for number in range(3)]
    assert not torch.equal(batches[0]["layout"].units, batches[1]["layout"].units)
    alone = torch.stack([model(**model_inputs([batch])) for batch in batches])
    alone.sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    together = model(**model_inputs(batches))
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    together.sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_a_run_in_groups_is_made_of_the_same_samples_and_ends_with_the_same_weights_to_rounding(micro, tmp_path):
    def run(name, *, per_forward):
        config = micro(
            backbone={"drop_path": 0.0},
            mim={"micro_batches_per_forward": per_forward},
            data={"batch_size": 16},
            run={"folder": tmp_path / name, "save_every_steps": 2},
        )
        train(config)
        checkpoint = newest_checkpoint(tmp_path / name / "checkpoints")
        lines = [json.loads(line) for line in (tmp_path / name / "samples-00000.jsonl").read_text().splitlines()]
        notes = {(line["step"], line["micro_batch"]): line for line in lines}
        return {key: checkpoint.read_full("weight", key) for key in checkpoint.names("weight")}, notes

    alone, notes = run("alone", per_forward=1)
    together, same_notes = run("together", per_forward=3)
    assert notes == same_notes
    assert len(notes) == 6 * 4
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_stacked_is_refused(micro):
    with pytest.raises(ValueError, match=r"needs backbone.drop-path 0, .*got 0.1"):
        micro(mim={"micro_batches_per_forward": 2})
    with pytest.raises(ValueError, match=r"micro-batches-per-forward needs mim.encoder visible"):
        micro(mim={"micro_batches_per_forward": 2, "encoder": "dense"})
    secvit = {"drop_path": 0.0, **BACKBONES["secvit"]}
    with pytest.raises(
        ValueError, match=r"must be 1 for SecNetwork; these take several: SwinTransformer, SwinTransformerV2"
    ):
        build_model(micro(backbone=secvit, mim={"micro_batches_per_forward": 2}))
    with pytest.raises(ValueError, match=r"micro-batches-per-forward must be at least 1, got 0"):
        micro(mim={"micro_batches_per_forward": 0})
    model = build_model(micro(backbone={"drop_path": 0.0}))
    layout = batch_of(model, number=0)["layout"]
    other = dataclasses.replace(layout, units=layout.units[:1])
    with pytest.raises(ValueError, match=r"need equally many visible units, got \[1, \d+\]"):
        VisibleStack.of([layout, other])
