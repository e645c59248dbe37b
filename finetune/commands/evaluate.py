"""The commands that train, measure, and show what was measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from backbones.weights.handoff import skeleton
from data.loading.mixing import training_order
from engine.commands import ExistingRun
from engine.documents import read_json, read_yaml
from engine.errors import UserError
from engine.loop.optimizer import Schedule
from engine.loop.resume import check_start
from engine.recipe import on_rank_zero, parse, plain
from finetune.classification.config import ClassifyConfig
from finetune.commands.options import EvaluationRequest
from finetune.config import FinetuneConfig
from finetune.evaluation.results import FILE_NAME
from finetune.measure import measure
from finetune.network.start import resolve_start
from finetune.network.weights import stored_metadata, task_in
from finetune.task import RECIPE_NAME, Task, load_task, task_of_run
from finetune.tasks import TASKS, choose_task, task_of_config
from finetune.train import train


def run_training(options: FinetuneConfig | EvaluationRequest) -> None:
    """Fine-tune and show the results; what is asked for in the old spelling of ``evaluate`` is measured."""
    if isinstance(options, EvaluationRequest):
        run_evaluation(options)
        return
    _show(load_task(task_of_config(options)), train(options), title=str(options.run.folder))


def run_check(config: FinetuneConfig) -> None:
    """Refuse what a run would refuse before its first step; nothing is written, and no image read."""
    start, data = resolve_start(config.backbone), load_task(task_of_config(config)).open_data(config)
    skeleton(start.architecture, **start.model_args)
    check_start(config.run)
    if isinstance(config, ClassifyConfig) and config.task.method == "knn":
        Console(soft_wrap=True).print("nothing to refuse: kNN trains nothing")
        return
    order = training_order(config.data, data.train, seed=config.run.seed, repeats=data.repeats)
    schedule = Schedule(config.optimizer, batch_size=config.data.batch_size, steps_per_epoch=order.steps_per_epoch)
    Console(soft_wrap=True).print(f"nothing to refuse: {schedule}", markup=False)


def run_evaluation(request: EvaluationRequest) -> None:
    """Measure and show the results."""
    config = evaluation_config(request)
    _show(load_task(task_of_config(config)), measure(config, request.what), title=request.what)


def show_results(options: ExistingRun) -> None:
    """Show the results of a finished run again."""
    path = options.folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path} is not there yet: a run writes it at its end")
    _show(task_of_run(options.folder), read_json(path)["results"], title=str(options.folder))


def evaluation_config(request: EvaluationRequest) -> FinetuneConfig:
    """Fill the recipe by which something is measured: that of its training, and above it the options.

    Raises:
        UserError: an option of the network is another one than it was trained with.
    """
    name, recipe = trained_recipe(request.what)
    task, options = choose_task(request.argv, default=name)
    below = recipe if task == name else {}
    data = {"shards": ["none"], **below.get("data", {})}  # nothing is trained
    config = parse(TASKS[task].config, options, below={**below, "data": data}, program=request.program)
    _refuse_other_network(config, below, head=TASKS[task].head, what=request.what)
    return config


def trained_recipe(what: str) -> tuple[str, dict[str, Any]]:
    """Read the task and the recipe of the run that ``what`` is or lies in, else those stored in it; empty for others.

    Weights that lie in no run do not say where it was: results go to this command's own run folder.
    """
    path = Path(what)
    folder = _run_around(path) if path.is_dir() else None  # or it is a name of timm's
    if folder is not None:
        recipe = read_yaml(folder / RECIPE_NAME)
        recipe["run"] = {**recipe.get("run", {}), "folder": str(folder)}  # also where the run was moved
        return choose_task(["--recipe", str(folder / RECIPE_NAME)])[0], recipe
    metadata = stored_metadata(path) if path.is_dir() else None
    if metadata is None or task_in(metadata) not in TASKS:
        return "classify", {}
    recipe = metadata["recipe"]
    run = {key: value for key, value in recipe["run"].items() if key != "folder"}
    return task_in(metadata), {**recipe, "run": run}


def _run_around(path: Path) -> Path | None:
    """Find the run folder that something is or lies in."""
    for folder in (path, path.parent.parent):
        recipe = folder / RECIPE_NAME
        if recipe.is_file() and "val_shards" in read_yaml(recipe):  # or it is of pretraining
            return folder
    return None


def _refuse_other_network(config: FinetuneConfig, recipe: Mapping[str, Any], *, head: str | None, what: str) -> None:
    """Refuse options of a head that was trained with others: it is built as it was trained, whatever they say."""
    if head is None or head not in recipe:
        return
    section, trained = getattr(config, head), recipe[head]
    for field in dataclasses.fields(section):
        value = plain(getattr(section, field.name))
        stored = trained.get(field.name, value)
        if value != stored and not field.metadata.get("may_change"):
            option = f"{head}.{field.name.replace('_', '-')}"
            raise UserError(f"{option} {value} cannot be measured, {what} was trained with {stored}; leave it out")


def _show(task: type[Task], results: Sequence[Mapping[str, Any]], *, title: str) -> None:
    if results and on_rank_zero():
        Console().print(task.table(results, title=title))
