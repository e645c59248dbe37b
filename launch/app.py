"""The launcher: submits the programs to a cluster, or to this machine, and looks after the jobs."""

import logging

from engine.commands import EXISTING_RUN, Command, run_program
from engine.errors import one_line_errors

ABOUT = """\
Submit the programs to a Slurm cluster, or run them in the background of this machine, and look after the jobs.

What submits takes --cluster NAME, --nodes N and --dry-run beside the program's own options. --cluster.OPTION VALUE
changes one line of the cluster's file for a job; `cluster-options` lists them."""
PARSE, SUBMIT = "launch.commands.submit:parse_submission", "launch.commands.submit:submit_jobs"
COMMANDS = {
    "pretrain": Command("check a pretraining and submit it", options=PARSE, run=SUBMIT, usage="OPTIONS"),
    "finetune": Command("check a fine-tuning and submit it", options=PARSE, run=SUBMIT, usage="OPTIONS"),
    "data": Command(
        "check the writing of shards and submit it to one node", options=PARSE, run=SUBMIT, usage="write OPTIONS"
    ),
    "status": Command(
        "show where a run stands: queue, attempts, step",
        options=EXISTING_RUN,
        run="launch.commands.monitor:show_status",
        usage="RUN",
    ),
    "logs": Command(
        "show what it prints",
        options="launch.commands.monitor:LogOptions",
        run="launch.commands.monitor:show_logs",
        usage="RUN [--node N] [--follow]",
    ),
    "cancel": Command(
        "save and end; --now ends it without saving",
        options="launch.commands.monitor:CancelOptions",
        run="launch.commands.monitor:cancel_job",
        usage="RUN [--now]",
    ),
    "resume": Command(
        "go on, also with other nodes, another cluster or other options",
        options="launch.commands.submit:parse_resume",
        run=SUBMIT,
        usage="RUN [OPTIONS]",
    ),
    "doctor": Command(
        "examine the nodes in a short job",
        options="launch.commands.doctor:parse_doctor",
        run="launch.commands.doctor:examine_nodes",
        usage="[PRETRAIN OPTIONS]",
    ),
    "verify-resume": Command(
        "prove on a node that killed runs end as others do",
        options="launch.commands.verify_resume:parse_proof",
        run=SUBMIT,
        usage="PRETRAIN OPTIONS",
    ),
    "cluster-options": Command(
        "list what a cluster's file may hold",
        options="launch.commands.submit:parse_cluster_options",
        run=SUBMIT,
    ),
    "settle": Command(
        "end an attempt: the last line of a job's script",
        options="launch.attempt.job_end:SettleOptions",
        run="launch.attempt.job_end:settle",
        usage="EXIT_CODE RUN...",
    ),
}


@one_line_errors
def main() -> None:
    """Run the command that the first argument names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(COMMANDS, about=ABOUT)
