"""Every kind of backbone through the same program: the loss falls, and what was trained is fine-tuned."""

import json

import pytest
import timm
import torch

from data.config import DataConfig
from engine.checkpoint.store import CheckpointStore
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.classification.config import ClassifyConfig, ClassifyEvaluationConfig
from finetune.config import StartConfig
from finetune.train import train as finetune
from pretrain.trainer import train

WIDTHS = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window": None}
BACKBONES = {
    "vit": {"name": "vit_tiny_patch16_224", "embed_dim": 32, "depths": (2,), "num_heads": (2,), "window": None},
    "twins": {**WIDTHS, "name": "twins_svt_small", "depths": (2, 2, 2, 2), "window": 2},
    "convnext": {**WIDTHS, "name": "convnext_tiny", "num_heads": None},
    "secvit": {**WIDTHS, "name": "secvit_tiny"},
    "sec_swin": {**WIDTHS, "name": "sec_swin_tiny"},
    "sec_faster_vit": {**WIDTHS, "name": "sec_faster_vit_0"},
    "xformer": {
        **WIDTHS,
        "name": "xformer",
        "img_size": (96, 96),
        "embed_dim": 8,
        "depths": (1, 1, 1),
        "num_heads": None,
    },
}


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return {"drop_path": 0.0, **BACKBONES[request.param]}


@pytest.mark.parametrize("encoder", ["visible", "dense"])
def test_loss_falls_and_weights_reach_fine_tuning(encoder, backbone, micro, shards, tmp_path):
    steps = {"steps": 20, "base_lr": 0.1, "ema_decay": None}
    config = micro(backbone=backbone, mim={"encoder": encoder}, optimizer=steps, run={"save_every_steps": 20})
    train(config)
    losses = [json.loads(line)["loss"] for line in (config.run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])

    folder = config.run.folder / "backbone"
    handed = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    trained = CheckpointStore(config.run.folder / "checkpoints", rank=0, world_size=1).latest()
    names = [name for name in trained.names("weight") if name.startswith("encoder.")]
    assert len(names) > 20
    assert tuple(timm.create_model(f"local-dir:{folder}").pretrained_cfg["input_size"][1:]) == config.backbone.img_size
    moments = set(trained.names("exp_avg_sq"))
    still = [name for name in names if name in moments and not trained.read_full("exp_avg_sq", name).any()]
    assert not still, "the loss falls for a blind encoder, too: each of its parameters must have had a gradient"
    for name in names:
        assert torch.equal(handed[name.removeprefix("encoder.")], trained.read_full("weight", name)), name

    results = finetune(
        ClassifyConfig(
            data=DataConfig(shards=(str(shards),), batch_size=8, micro_batch_size=4, workers=0),
            val_shards=str(shards),
            backbone=StartConfig(init=folder, drop_path=0.0),
            evaluation=ClassifyEvaluationConfig(every_steps=2),
            optimizer=OptimizerConfig(base_lr=1e-2, steps=2, warmup_steps=1, layer_decay=0.7),
            run=RunConfig(folder=tmp_path / "finetuned"),
            report=ReportConfig(every_steps=1, tensorboard=False),
            distributed=DistributedConfig(precision="fp32"),
        )
    )
    assert results is not None
