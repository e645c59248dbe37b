"""Recipes that moved into sub-folders are still read by the paths that they had before."""

from pathlib import Path

import pytest

from engine.recipe import find_recipe
from finetune.tasks import choose_task

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "finetune/recipes": """
        ade20k_secvit_semantic_fpn ade20k_secvit_uper_net ade20k_segvit_shrunk_vit_large ade20k_segvit_vit_base
        ade20k_segvit_vit_large bccd_tiny_cpu camvid_cpu cityscapes_xformer coco_greenmim_swin_base
        coco_secvit_cascade_1x coco_secvit_cascade_3x coco_secvit_mask_rcnn_1x coco_secvit_mask_rcnn_3x
        coco_secvit_retinanet_1x coco_secvit_retinanet_3x coco_xformer_yolo_320 coco_xformer_yolo_416
        cocostuff_segvit_shrunk_vit_large cocostuff_segvit_vit_large imagenet imagenet_knn imagenet_linear
        imagenet_secvit imagenet_secvit_base_supervised imagenet_secvit_large_supervised
        imagenet_secvit_small_supervised imagenet_secvit_tiny_supervised imagenet_swin_large_win14
        imagenet_swin_tiny imagenet_vit_base imagenet_vit_large imagenet_xformer
        pascal_context_segvit_shrunk_vit_large pascal_context_segvit_vit_large tiny_cpu
    """,
    "pretrain/recipes": """
        secvit_base secvit_large secvit_small secvit_tiny secvit_tiny_cpu single_gpu swin_base swin_base_win14
        swin_large swin_large_win14 swin_small swin_small_win14 swin_tiny swin_tiny_win14 tiny_cpu vit_base
        vit_large
    """,
    "pretrain/recipes/sweeps": """
        decoder_depth_1 decoder_depth_2 decoder_depth_4 decoder_depth_8 epochs_0100 epochs_0200 epochs_0400
        epochs_0800 epochs_1600 mask_ratio_050 mask_ratio_060 mask_ratio_070 mask_ratio_075 mask_ratio_080
        mask_ratio_085 window_07 window_14
    """,
}


@pytest.mark.parametrize("folder", NAMES)
def test_every_recipe_is_read_by_the_path_that_it_had(folder):
    for name in NAMES[folder].split():
        path = find_recipe(ROOT / folder / f"{name}.yaml")
        assert path.is_file(), path
        assert path.stem == name


@pytest.mark.parametrize(
    ("name", "task"), [("ade20k_segvit_vit_base", "segment"), ("coco_secvit_retinanet_1x", "detect")]
)
def test_the_task_of_a_recipe_is_known_by_the_path_that_it_had(name, task):
    assert choose_task(["--recipe", str(ROOT / "finetune" / "recipes" / f"{name}.yaml")])[0] == task
