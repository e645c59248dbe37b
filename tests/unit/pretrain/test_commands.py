"""What a run would refuse before its first step is refused by the command `check`, which starts none."""

import re

import pytest

from engine.errors import UserError
from pretrain.commands import run_check


def test_a_sound_recipe_passes_with_its_plan_and_leaves_nothing(micro, capsys, tmp_path):
    run_check(micro())
    assert "nothing to refuse: 6 steps of 8 images" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"backbone": {"name": "swin_tinny", "init": None}}, "timm has no architecture 'swin_tinny'"),
        ({"backbone": {"img_size": (100, 64)}}, "is no multiple of the mask unit"),
        (
            {"backbone": {"name": "resnet50", "window": None, "embed_dim": None, "depths": None, "num_heads": None}},
            "these can",
        ),
        ({"data": {"batch_size": 800}}, "48"),
        ({"optimizer": {"warmup_steps": 7}}, "does not fit in the run of 6 steps"),
    ],
)
def test_other_recipes_are_refused(micro, sections, words):
    with pytest.raises(UserError, match=re.escape(words)):
        run_check(micro(**sections))


def test_a_checkpoint_to_branch_from_must_be_there(micro, tmp_path):
    with pytest.raises(UserError, match=r"step-3 is no folder"):
        run_check(micro(run={"branch_from": tmp_path / "step-3"}))
