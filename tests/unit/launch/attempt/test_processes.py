"""Start commands: one launcher a node, which all agree on where they meet."""

from launch.attempt.processes import Place, master_host, place_of, process_environment, start_command
from launch.config import ClusterConfig

PROGRAM = ["pretrain/main.py", "--recipe", "r.yaml"]


def place(**changes):
    return Place(**{"node": 1, "nodes": 4, "processes": 8, "master": "n0", "port": 23456, **changes})


def option(command, name):
    return command[command.index(name) + 1]


def test_accelerate_gets_all_processes_and_this_nodes_number():
    command = start_command(PROGRAM, starter="accelerate", zero_stage=2, place=place(), python=["python"])
    assert command[-3:] == PROGRAM
    assert "--use_deepspeed" in command
    options = {
        name: option(command, f"--{name}") for name in ("zero_stage", "num_machines", "machine_rank", "num_processes")
    }
    assert options == {"zero_stage": "2", "num_machines": "4", "machine_rank": "1", "num_processes": "32"}
    assert option(command, "--main_process_ip") == "n0"
    assert option(command, "--main_process_port") == "23456"
    assert option(command, "--deepspeed_multinode_launcher") == "standard"  # no node starts processes of another one


def test_torchrun_gets_the_processes_of_one_node():
    command = start_command(PROGRAM, starter="torchrun", zero_stage=1, place=place(), python=["python"])
    assert [option(command, name) for name in ("--nnodes", "--node-rank", "--nproc-per-node")] == ["4", "1", "8"]


def test_one_process_needs_no_launcher_and_a_container_comes_first():
    container = ["apptainer", "exec", "x.sif", "python"]
    command = start_command(PROGRAM, starter="python", zero_stage=1, place=place(nodes=1), python=container)
    assert command == [*container, *PROGRAM]


def test_all_nodes_of_a_job_find_the_same_port_and_another_after_each_restart():
    def port(node, *, job=77, restarts=0):
        cluster = ClusterConfig(master_port=20_000)
        return place_of(cluster, node=node, nodes=4, host="n0", job_number=job, restarts=restarts).port

    assert len({port(node) for node in range(4)}) == 1
    assert len({port(0, restarts=restarts) for restarts in range(50)}) == 50
    assert port(0) != port(0, job=78)
    assert 20_000 <= port(0, job=10**9) < 40_000


def test_the_master_is_node_0_by_name_or_where_that_is_unknown_by_address():
    assert master_host(["localhost", "other"], {}) == "localhost"
    assert master_host(["no-such-host.invalid", "other"], {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}) == "10.0.0.7"
    assert master_host(["only-one"], {}) == "127.0.0.1"


def test_the_cluster_files_environment_reaches_the_processes():
    environment = process_environment(ClusterConfig(gpus_per_node=8, environment=("A=1", "B=x=y")))
    assert environment == {"A": "1", "B": "x=y"}
    assert process_environment(ClusterConfig(gpus_per_node=0))["DS_ACCELERATOR"] == "cpu"
