"""What ``verify-resume`` calls proved, and what it refuses. The proof itself: tests/integration/test_survival.py."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from engine.errors import UserError
from engine.recipe import dump
from pretrain.options import ProofRuns, parse_proof
from pretrain.verify_resume.launched_run import ProcessLayout
from pretrain.verify_resume.proof import Evidence, verify_resume

PROVED = Evidence(
    steps=8,
    killed_after=4,
    deterministic=True,
    layout=ProcessLayout(processes=2),
    moved_layout=ProcessLayout(processes=1),
    num_tensors=10,
    num_micro_batches=16,
    resumed_tensors_differing=0,
    resumed_micro_batches_differing=0,
    moved_difference=1e-7,
    moved_micro_batches_differing=0,
)


@pytest.mark.parametrize(
    ("change", "proved"),
    [
        ({}, True),
        ({"resumed_tensors_differing": 1}, False),
        ({"resumed_tensors_differing": 1, "deterministic": False}, True),
        ({"resumed_micro_batches_differing": 1, "deterministic": False}, False),
        ({"moved_micro_batches_differing": 1}, False),
        ({"moved_difference": 1e-3}, False),
        ({"moved_difference": float("nan")}, False),
    ],
)
def test_bits_are_promised_with_deterministic_kernels_and_samples_always(change, proved):
    evidence = replace(PROVED, **change)
    assert evidence.proved is proved
    screen = io.StringIO()
    Console(width=200, file=screen).print(evidence.table())
    said = screen.getvalue()
    assert ("NOT PROVED" in said) is not proved
    assert ("not deterministic" in said) is (not evidence.deterministic)


def test_what_cannot_be_proved_is_refused_before_anything_runs(micro, tmp_path):
    config = micro()
    with pytest.raises(UserError, match="cannot be divided among 3 processes; process counts that work: 1, 2"):
        verify_resume(config, steps=12, processes=3)
    with pytest.raises(UserError, match="--steps must be at least 2"):
        ProofRuns(steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(UserError, match=r"is not empty; choose another --run.folder"):
        verify_resume(config, steps=12, processes=2)
    alone = replace(config, data=replace(config.data, micro_batch_size=8))
    with pytest.raises(UserError, match=r"no other number of processes; halve data.micro-batch-size 8"):
        verify_resume(alone, steps=12, processes=1)


def test_the_proof_takes_a_recipe_beside_its_own_options(micro, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump(micro()))
    runs, config = parse_proof(["--steps", "6", "--recipe", str(tmp_path / "recipe.yaml"), "--processes=4"], "program")
    assert runs == ProofRuns(steps=6, processes=4)
    assert config == micro()
