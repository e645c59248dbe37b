"""The launcher's command line: checks, dry runs, and how fast they are."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine.recipe import parse
from finetune.classification.config import ClassifyConfig
from launch.app import COMMANDS
from launch.commands.arguments import split_arguments
from launch.config import read_cluster
from launch.job_folder import Job, JobFolder
from launch.program_calls import check_call
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[3]


def error_of(done):
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_dry_run_shows_the_script_the_recipe_and_the_command_and_writes_nothing(launch, options, tmp_path):
    more = ("--cluster", "a100", "--nodes", "2", "--cluster.gpus-per-node", "2", "--cluster.account", "vision")
    done = launch("pretrain", *options, *more, "--dry-run")
    assert done.returncode == 0, done.stderr
    for line in ("--nodes=2", "--gpus-per-node=2", "--account=vision", "--signal=USR2@300", "--requeue", "--mem=900G"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "--use_deepspeed --zero_stage 1" in done.stdout
    assert "--num_machines 2 --machine_rank NODE --num_processes 4" in done.stdout
    recipe = done.stdout.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0]
    assert yaml.safe_load(recipe)["run"]["folder"] == str(tmp_path / "runs" / "x")
    (tmp_path / "shown.yaml").write_text(recipe)
    assert parse(PretrainConfig, ["--recipe", str(tmp_path / "shown.yaml")]) == parse(PretrainConfig, options)
    assert not (tmp_path / "runs").exists()


def test_it_takes_less_than_a_second_and_neither_torch_nor_numpy(options):
    program = (
        "import sys, resource\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch.app import main\n"
        "main()\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'numpy', 'timm', 'accelerate', 'deepspeed'} & set(sys.modules)\n"
        "print('used', usage.ru_utime + usage.ru_stime, sorted(heavy))\n"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "pretrain",
        *options,
        "--cluster",
        "a100",
        "--cluster.gpus-per-node",
        "1",
        "--skip-check",
        "--dry-run",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seconds, heavy = re.fullmatch(r"used (\S+) (.*)", done.stdout.splitlines()[-1]).groups()
    assert heavy == "[]"
    assert float(seconds) < 1.0  # of the processor: the machine may be busy with other things


def test_processes_that_do_not_divide_are_refused_with_those_that_do(launch, options):
    error = error_of(launch("pretrain", *options, "--cluster", "a100", "--nodes", "4", "--dry-run"))
    assert "cannot be divided among 32 processes; process counts that work: 1, 2, 4 (data.batch-size is set in" in error


def test_a_wrong_recipe_is_refused_before_anything_is_queued(launch, options):
    done = launch("pretrain", *options, "--mim.mask-ratio", "1.5", "--cluster", "local")
    assert done.returncode != 0
    assert "mim.mask-ratio must lie in [0, 1)" in done.stderr + done.stdout


def test_shards_that_are_not_there_are_refused(launch, options, tmp_path):
    error = error_of(launch("pretrain", *options, "--data.shards", str(tmp_path / "nowhere"), "--dry-run"))
    assert f"{tmp_path / 'nowhere'} holds no shards: expected manifest.json in it" in error


def test_a_secret_in_a_url_is_refused_and_not_repeated(launch, options):
    error = error_of(launch("pretrain", *options, "--data.shards", "https://me:hunter2@host/shards", "--dry-run"))
    assert "holds a user name or password" in error
    assert "hunter2" not in error


def test_secrets_of_the_shell_stand_in_nothing_that_is_submitted(launch, options):
    more = ("--cluster", "a100", "--cluster.gpus-per-node", "1", "--dry-run")
    done = launch("pretrain", *options, *more, WANDB_API_KEY="hunter2", AWS_SECRET_ACCESS_KEY="hunter3")
    assert done.returncode == 0, done.stderr
    assert "hunter" not in done.stdout + done.stderr


def test_another_recipe_than_that_of_the_checkpoints_is_refused_with_both_values(launch, options, tmp_path):
    run = tmp_path / "runs" / "x"
    (run / "checkpoints" / "step-000000010").mkdir(parents=True)
    shown = launch("pretrain", *options, "--dry-run").stdout
    (run / "config.yaml").write_text(shown.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0])
    assert launch("pretrain", *options, "--dry-run").returncode == 0
    error = error_of(launch("pretrain", *options, "--run.seed", "7", "--dry-run"))
    assert "run.seed: stored 0, asked 7" in error


def test_a_proof_is_a_job_of_one_node_that_is_not_resumed(launch, options, tmp_path):
    more = ("--cluster", "a100", "--cluster.gpus-per-node", "2", "--steps", "8", "--moved-processes", "1")
    done = launch("verify-resume", *options, *more, "--dry-run")
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "runs" / "x.job" / "launch" / "recipe.yaml"
    command = f"pretrain/main.py verify-resume --recipe {recipe} --steps 8 --processes 2 --moved-processes 1"
    assert command in done.stdout
    assert "#SBATCH --nodes=1\n" in done.stdout
    assert "but a node has 2 GPUs" in error_of(launch("verify-resume", *options, *more, "--moved-processes", "4"))
    assert "--steps must be at least 2" in error_of(launch("verify-resume", *options, *more, "--steps", "1"))
    assert "one node, got --nodes 2" in error_of(launch("verify-resume", *options, *more, "--nodes", "2"))
    call = replace(check_call("pretrain", options, num_processes=1), arguments=("verify-resume",))
    folder = JobFolder(tmp_path / "runs" / "x.job")
    folder.make()
    folder.write(Job(call=call, cluster=read_cluster("local"), nodes=1, cwd=str(tmp_path)))
    assert "holds no run that could go on" in error_of(launch("resume", str(folder.run)))


def test_without_slurm_it_says_where_to_submit(launch, options):
    done = launch("pretrain", *options, "--cluster", "a100", "--cluster.gpus-per-node", "1", PATH="/nowhere")
    assert "sbatch is not found: submit on a login node" in error_of(done)


def test_an_unknown_cluster_and_an_unknown_command_are_refused_with_the_choices(launch, options):
    assert "--cluster takes one of a100, local" in error_of(launch("pretrain", *options, "--cluster", "b200"))
    assert "choose pretrain, finetune" in error_of(launch("x"))
    assert "Missing from launch/main.py status" in launch("status").stderr
    for command in ("status", "logs", "cancel", "resume"):
        assert "takes one run folder that exists, got nowhere" in error_of(launch(command, "nowhere"))


def test_a_sweep_is_one_array_with_a_run_folder_for_each_recipe(launch, options, tmp_path):
    sweep = [str(ROOT / "pretrain" / "recipes" / "sweeps" / f"mask_ratio_{name}.yaml") for name in ("060", "075")]
    more = ("--cluster", "a100", "--cluster.gpus-per-node", "1", "--sweep", *sweep, "--parallel", "1", "--dry-run")
    done = launch("pretrain", *options, *more)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-1%1\n" in done.stdout
    runs = [tmp_path / "runs" / "x" / name for name in ("mask_ratio_060", "mask_ratio_075")]
    assert f"settle $? {runs[0]} {runs[1]}" in done.stdout
    assert "mask_ratio: 0.6\n" in done.stdout
    assert "mask_ratio: 0.75\n" in done.stdout


def test_sweeps_in_which_two_runs_would_share_a_folder_are_refused(launch, options, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.yaml").write_text("run: {seed: 1}")
    more = ("--sweep", "a/same.yaml", "b/same.yaml", "--dry-run")
    error = error_of(launch("pretrain", *options, *more))
    assert "a/same.yaml and b/same.yaml would both run in" in error


def test_run_folder_of_a_sweep_may_be_given_with_an_equals_sign(launch, options, tmp_path):
    (tmp_path / "one.yaml").write_text("run: {seed: 1}")
    more = (f"--run.folder={tmp_path}/swept", "--sweep", "one.yaml", "--cluster.processes-per-node", "1", "--dry-run")
    done = launch("pretrain", *options[:-2], *more)
    assert f"folder: {tmp_path}/swept/one" in done.stdout, done.stderr


def test_folder_with_a_percent_sign_is_refused_under_slurm(launch, options, tmp_path):
    more = ("--run.folder", str(tmp_path / "50%j"), "--cluster", "a100", "--cluster.gpus-per-node", "1", "--dry-run")
    assert "holds a %, which Slurm reads as a pattern" in error_of(launch("pretrain", *options, *more))


def test_resuming_from_another_folder_finds_what_the_recipe_names(launch, options, tmp_path):
    """The recipe's relative paths start where the run was submitted."""
    relative = [*options[:2], "--data.shards", "shards", "--run.folder", "runs/x", "--distributed.engine", "single"]
    call = check_call("pretrain", options, num_processes=1)
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    recipe = (
        launch("pretrain", *relative, "--dry-run").stdout.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0]
    )
    job = Job(call=replace(call, recipe=recipe), cluster=read_cluster("local"), nodes=1, cwd=str(tmp_path))
    folder.write(job)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "main.py"), "resume", "../runs/x", "--skip-check", "--dry-run"],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"in {tmp_path}:" in done.stdout
    assert f"{folder.recipe}" in done.stdout


def test_a_run_folder_that_was_moved_goes_on_where_it_is(launch, options, tmp_path):
    call = check_call("pretrain", options, num_processes=1)
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    folder.write(Job(call=call, cluster=read_cluster("local"), nodes=1, cwd=str(tmp_path)))
    moved = folder.run.rename(tmp_path / "moved")
    done = launch("resume", str(moved), "--dry-run")
    assert done.returncode == 0, done.stderr
    recipe = done.stdout.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0]
    assert yaml.safe_load(recipe)["run"]["folder"] == str(moved)


def test_arguments_go_to_the_launcher_to_the_cluster_and_to_the_program():
    argv = [
        "--nodes",
        "2",
        "--data.shards",
        "a",
        "b",
        "--cluster.qos=high",
        "--sweep",
        "x",
        "y",
        "--run.seed=3",
        "--dry-run",
    ]
    own, cluster, program = split_arguments(argv)
    assert own == ["--nodes", "2", "--sweep", "x", "y", "--dry-run"]
    assert cluster == ["--qos=high"]
    assert program == ["--data.shards", "a", "b", "--run.seed=3"]


def test_finetuning_is_checked_by_its_own_config(launch, options, tmp_path):
    recipe = ("--recipe", str(ROOT / "finetune" / "recipes" / "imagenet.yaml"), *options[2:])
    missing = launch("finetune", *recipe, "--cluster", "a100", "--dry-run")
    assert "val-shards" in missing.stderr + missing.stdout
    done = launch("finetune", *recipe, "--val-shards", str(tmp_path / "shards"), "--cluster", "a100", "--dry-run")
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0]
    (tmp_path / "shown.yaml").write_text(text)
    assert parse(ClassifyConfig, ["--recipe", str(tmp_path / "shown.yaml")]).val_shards == str(tmp_path / "shards")


def test_writing_shards_is_checked_and_runs_on_one_node(launch, tmp_path):
    (tmp_path / "images").mkdir()
    write = ("data", "write", "--source", "images", "--out", str(tmp_path / "shards"), "--cluster", "a100", "--dry-run")
    done = launch(*write)
    assert done.returncode == 0, done.stderr
    assert f"data/main.py write --source images --out {tmp_path / 'shards'}" in done.stdout.replace("\n", " ")
    assert f"settle $? {tmp_path / 'shards.job'}" in done.stdout
    assert "--val-fraction" in launch(*write, "--val-fractoin", "0.1").stderr
    assert "--source pictures does not exist here" in error_of(
        launch("data", "write", "--source", "pictures", "--out", "x")
    )
    assert "data takes the command write, got verify" in error_of(launch("data", "verify", "--shards", "x"))
    assert "data write runs on one node" in error_of(launch(*write, "--nodes", "2"))


def test_every_line_of_a_clusters_file_is_explained(launch):
    done = launch("cluster-options")
    assert done.returncode == 0
    assert "--warning-s" in done.stdout
    assert "a checkpoint must fit into it" in done.stdout


def test_the_command_is_found_from_any_folder_as_script_and_as_module(launch):
    assert "usage: launch/main.py" in launch().stdout
    done = subprocess.run(
        [sys.executable, "-m", "launch.main", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: launch/main.py" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_command_and_every_command_has_its_own(launch, command):
    assert re.search(rf"^  {command} ", launch("--help").stdout, re.MULTILINE)
    write = ("write",) if command == "data" else ()
    done = launch(command, *write, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: launch/main.py {command}" in done.stdout


@pytest.mark.parametrize(("command", "option"), [("pretrain", "--mim.mask-ratio"), ("doctor", "--mim.mask-ratio")])
def test_help_of_a_command_shows_the_options_of_the_launcher_and_of_the_program(launch, command, option):
    shown = launch(command, "--help").stdout
    for text in ("--nodes", "--cluster.OPTION", option):
        assert text in shown


def test_an_extension_is_checked_and_handed_on_to_the_program(launch, options, tmp_path):
    assert "takes a Python file" in error_of(launch("pretrain", *options, "--extension", "nowhere.py", "--dry-run"))
    extension = tmp_path / "mine.py"
    extension.write_text("")
    done = launch("pretrain", *options, "--extension", "mine.py", "--cluster", "a100", "--nodes", "1", "--dry-run")
    assert "process counts that work" in error_of(done)
    more = ("--cluster", "a100", "--cluster.gpus-per-node", "1", "--dry-run")
    done = launch("pretrain", *options, "--extension", "mine.py", *more)
    assert f"--recipe {tmp_path / 'runs/x/launch/recipe.yaml'} --extension {extension}" in done.stdout


def test_a_run_with_an_extension_goes_on_with_it(launch, options, tmp_path):
    extension = tmp_path / "mine.py"
    extension.write_text("")
    call = replace(check_call("pretrain", options, num_processes=1), extensions=(extension,))
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    folder.write(Job(call=call, cluster=read_cluster("local"), nodes=1, cwd=str(tmp_path)))
    assert f"--extension {extension}" in launch("resume", str(folder.run), "--dry-run").stdout
    extension.unlink()
    assert "takes a Python file" in error_of(launch("resume", str(folder.run), "--dry-run"))
