"""The bench command says images a second, where the time goes, and how many cores feed a GPU."""

import json

import pytest

from data.commands.bench import STAGES, cores_needed, measure, run_bench
from data.commands.config import Bench


def test_the_stages_add_up_to_the_speed(write):
    found = measure(write(20), num_images=24, size=32, decode="exact")
    assert set(found["ms_per_image"]) == set(STAGES)
    assert all(ms > 0 for stage, ms in found["ms_per_image"].items() if stage in ("read", "header", "decode"))
    assert found["images_per_s_per_core"] == pytest.approx(1000 / sum(found["ms_per_image"].values()))
    assert found["images_per_s_per_core_scaled"] > 0
    assert (found["images"], found["bad_images"]) == (40, 0)  # whole micro-batches of all 20


def test_images_that_do_not_decode_are_counted_and_not_measured(write):
    found = measure(write(20, broken=(3, 4)), num_images=20, size=32, decode="scaled")
    assert found["images"] + found["bad_images"] == 20
    assert found["bad_images"] == 2


def test_images_above_the_pixel_limit_count_as_bad(write):
    with pytest.raises(ValueError, match="none of 20 images decodes"):
        measure(write(20), num_images=20, size=32, decode="exact", max_pixels=10)


def test_cores_are_rounded_up():
    speed = {"images_per_s_per_core": 400.0}
    assert cores_needed(speed, gpu_images_per_s=1601)["cores_needed"] == 5
    assert cores_needed(speed, gpu_images_per_s=1600)["cores_needed"] == 4
    assert cores_needed(speed, gpu_images_per_s=None) == {}


def test_the_command_says_it_and_writes_it(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    shards = write(10)
    out = tmp_path / "bench.json"
    options = Bench(shards=shards.folder, images=10, size=24, gpu_images_per_s=5000, json_out=out)
    run_bench(options)
    said, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert f"{figures['images_per_s_per_core']:.0f} images/s per core to 24 px with data.decode exact" in said
    assert f"a GPU at 5000 images/s needs {figures['cores_needed']} cores" in said
    with pytest.raises(ValueError, match="gpu-images-per-s must be positive, got 0"):
        Bench(shards=shards.folder, gpu_images_per_s=0)
