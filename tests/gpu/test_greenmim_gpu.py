"""On a GPU: the same loss and gradients as on the CPU, no synchronisation inside a step, deterministic when asked."""

import pytest
import torch

from backbones.build import layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from data.config import DataConfig
from pretrain.batches.mask_inputs import mask_tensors
from pretrain.batches.masking import unit_mask
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def model_and_batch():
    config = PretrainConfig(
        data=DataConfig(shards=("",), batch_size=8, micro_batch_size=8),
        backbone=BackboneConfig(name="swin_tiny_patch4_window7_224"),
    )
    model = build_model(config)
    mask = unit_mask((7, 7), mask_ratio=0.75, seed=0, step=0, micro_batch=0)
    layout = build_layout(layout_spec(model.encoder), mask.visible)
    images = torch.randint(256, (8, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model, {"images": images, "layout": layout, **mask_tensors(mask, mask.visible_units)}


def loss_and_gradient(model, batch, device: str, *, autocast: bool = False):
    model = model.to(device).train()
    model.zero_grad(set_to_none=True)
    batch = {name: value.to(device) for name, value in batch.items()}
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        loss = model(**batch)
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()])
    return loss.item(), gradient


def test_gpu_equals_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model, batch = model_and_batch()
    cpu_loss, cpu_gradient = loss_and_gradient(model, batch, "cpu")
    gpu_loss, gpu_gradient = loss_and_gradient(model, batch, "cuda")
    assert gpu_loss == pytest.approx(cpu_loss, rel=1e-4)
    assert (gpu_gradient - cpu_gradient).norm() / cpu_gradient.norm() < 1e-3


def test_bf16_autocast_stays_close_to_fp32():
    model, batch = model_and_batch()
    loss, gradient = loss_and_gradient(model, batch, "cuda")
    bf16_loss, bf16_gradient = loss_and_gradient(model, batch, "cuda", autocast=True)
    assert bf16_loss == pytest.approx(loss, rel=2e-2)
    assert torch.nn.functional.cosine_similarity(gradient, bf16_gradient, dim=0) > 0.98


def test_forward_and_backward_do_not_synchronise_the_device(no_waiting):
    model, batch = model_and_batch()
    model = model.to("cuda")
    batch = {name: value.to("cuda") for name, value in batch.items()}
    model(**batch).backward()
    torch.cuda.synchronize()
    with no_waiting():
        model(**batch).backward()


def test_deterministic_steps_are_bit_identical():
    torch.use_deterministic_algorithms(True)
    try:
        model, batch = model_and_batch()
        one = loss_and_gradient(model, batch, "cuda")
        two = loss_and_gradient(model, batch, "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])
