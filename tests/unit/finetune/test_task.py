"""Every task has what the loop asks of it."""

import inspect

import pytest

from finetune.task import Task, load_task
from finetune.tasks import TASKS

ASKED = {name for name in dir(Task) if not name.startswith("_")} | set(Task.__annotations__)


def arguments(method):
    return [name for name in inspect.signature(method).parameters if name != "self"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_every_method_with_the_arguments_of_the_protocol(name):
    task = load_task(name)
    assert task.name == name
    for method, theirs in inspect.getmembers(Task, inspect.isfunction):
        if not method.startswith("_"):
            assert arguments(getattr(task, method)) == arguments(theirs)
    assert ASKED - set(dir(task)) - {"config", "data", "evaluator", "best_by"} == set()  # attributes of instances
