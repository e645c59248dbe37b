"""Cluster files: all of the tree parse, and what is wrong in one is named."""

from dataclasses import fields

import pytest

from launch.config import CLUSTERS, ClusterConfig, RestartConfig, processes_per_node, read_cluster


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_parses(path):
    assert isinstance(read_cluster(path.stem), ClusterConfig)
    assert read_cluster(str(path)) == read_cluster(path.stem)


def test_a_line_of_a_cluster_file_can_be_changed_for_one_job():
    cluster = read_cluster("a100", changes=("--qos", "high", "--restart.limit", "3"))
    assert (cluster.qos, cluster.restart.limit, cluster.gpus_per_node) == ("high", 3, 8)


def test_a_process_per_gpu_and_one_without_gpus():
    assert processes_per_node(ClusterConfig(gpus_per_node=4)) == 4
    assert processes_per_node(ClusterConfig(gpus_per_node=0)) == 1
    assert processes_per_node(ClusterConfig(gpus_per_node=0, processes_per_node=3)) == 3


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD"])
def test_a_secret_in_a_cluster_file_is_refused_without_its_value(name):
    with pytest.raises(ValueError, match=f"environment holds {name}") as error:
        ClusterConfig(environment=(f"{name}=hunter2",))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("setup", ("module load cuda", "export WANDB_API_KEY=hunter2"), "WANDB_API_KEY"),
        ("setup", ("export A=1; HF_TOKEN='hunter2' true",), "HF_TOKEN"),
        ("container", "apptainer exec --env AWS_SECRET_ACCESS_KEY=hunter2 x.sif", "AWS_SECRET_ACCESS_KEY"),
        ("container", "apptainer exec --env A=1,my_password=hunter2 x.sif", "my_password"),
    ],
)
def test_a_secret_in_a_line_of_the_script_is_refused_without_its_value(option, value, name):
    with pytest.raises(ValueError, match=f"{option} holds {name}, which may be a secret") as error:
        ClusterConfig(**{option: value})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "http_proxy=http://me:hunter2@proxy:3128",
        "HTTPS_PROXY=https://me:hunter2@[::1]/",
        "A=ftp://:hunter2@x",
        "REPO=https://ghp_hunter2Wmc0Q1zT8yXa4@github.com/a/b",
    ],
)
def test_a_url_with_a_password_or_a_token_is_refused_without_it(line):
    for option in ({"environment": (line,)}, {"setup": (f"export {line}",)}, {"container": f"run --env {line} x.sif"}):
        with pytest.raises(ValueError, match=r"holds a URL with a password or a token") as error:
            ClusterConfig(**option)
        assert "hunter2" not in str(error.value)


def test_a_proxy_without_a_password_is_taken():
    assert ClusterConfig(environment=("http_proxy=http://proxy:3128", "A=http://x/y:z@w", "B=http://me@proxy:1/"))


def test_words_of_secrets_elsewhere_in_a_name_or_line_are_no_secrets():
    ClusterConfig(
        environment=("TOKENIZERS_PARALLELISM=false", "MONKEY=1", "KEY_FILE=/x", "SSL_CERT_FILE=key"),
        setup=("module load secret-tools", "export NCCL_KEYS_MAX=2", "tool --key=/x"),
        container="apptainer exec --env TOKENIZERS_PARALLELISM=false --bind /keys x.sif",
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"environment": ("no value",)}, "environment takes NAME=value, got 'no value'"),
        ({"gpus_per_node": -1}, "gpus-per-node must not be negative"),
        ({"processes_per_node": 0}, "processes-per-node at least 1"),
        ({"time_limit_min": 2, "warning_s": 120}, "less than the 2 minutes of time-limit-min, got 120"),
        ({"master_port": 80}, "master-port must lie in 1024 to 45000, got 80"),
    ],
)
def test_what_is_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**wrong)


def test_restarts_cannot_be_negative():
    with pytest.raises(ValueError, match="must not be negative"):
        RestartConfig(limit=-1)


def test_every_option_has_its_line_of_help():
    source = (CLUSTERS.parent / "config.py").read_text()
    for config in (ClusterConfig, RestartConfig):
        for field in fields(config):
            if field.name != "restart":
                assert f"    {field.name}: " in source
