"""Which task a command line means."""

import pytest

from finetune.tasks import TASKS, choose_task


def test_without_a_word_it_is_classification():
    argv = ["--data.shards", "x", "--task.method", "linear"]
    assert choose_task(argv) == ("classify", argv)


@pytest.mark.parametrize("spelled", [["--task", "classify"], ["--task=classify"]])
def test_the_option_is_taken_out_of_the_words(spelled):
    argv = ["--run.folder", "x", *spelled, "--val-shards", "y"]
    assert choose_task(argv) == ("classify", ["--run.folder", "x", "--val-shards", "y"])


HEADS = {entry.head: name for name, entry in TASKS.items() if entry.head}


@pytest.mark.parametrize("section", HEADS)
def test_each_task_with_a_section_is_chosen_by_a_recipe_or_an_option_that_has_it(tmp_path, section):
    assert section in TASKS[HEADS[section]].config.__dataclass_fields__
    (tmp_path / "recipe.yaml").write_text(f"{section}: {{}}\n")
    argv = ["--recipe", str(tmp_path / "recipe.yaml")]
    assert choose_task(argv) == (HEADS[section], argv)
    assert choose_task([f"--{section}.x", "1"])[0] == HEADS[section]


def test_options_of_two_tasks_are_refused():
    with pytest.raises(ValueError, match="belong to detect and segment; give those of one task"):
        choose_task(["--detector.kind", "yolo", "--segmenter.head", "segvit"])


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"--task takes classify.*got 'detekt'"):
        choose_task(["--task", "detekt"])


@pytest.mark.parametrize("argv", [["--task"], ["--task="], ["--task", ""]])
def test_a_task_without_a_name_is_refused(argv):
    with pytest.raises(ValueError, match=r"--task takes classify.*got ''"):
        choose_task(argv)


def test_a_recipe_that_cannot_be_read_is_left_to_the_parser(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    argv = ["--recipe", str(tmp_path / "broken.yaml"), "--recipe", "missing.yaml"]
    assert choose_task(argv) == ("classify", argv)
