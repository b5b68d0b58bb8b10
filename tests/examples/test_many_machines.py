"""The examples for Slurm and Kubernetes: their command lines are ones, and the Slurm job stops, saves and goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from bitfast import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
SLURM = EXAMPLES / "pretrain_slurm.sh"


def parsed(arguments):
    """(torchrun's arguments, bitfast's config) of a command line after the word torchrun."""
    launcher = get_args_parser().parse_args(arguments)
    assert launcher.module and launcher.training_script == "bitfast"
    command, *rest = launcher.training_script_args
    config = cli._parse(command, rest)
    config.validate()
    return launcher, config


@pytest.fixture
def cluster(tmp_path):
    """A folder for PATH with Slurm's commands: srun notes its arguments and runs for as long as the test lets it."""
    programs = {
        "scontrol": f'[ "$1" = show ] && printf "%s\\n" node7 node8 || echo "$@" > {tmp_path}/requeued',
        "srun": f"""trap 'touch {tmp_path}/saved; exit 75' TERM
printf '%s\\n' "$@" > {tmp_path}/called
for i in $(seq 200); do [ -f {tmp_path}/go ] && exit $(cat {tmp_path}/go); sleep 0.05; done""",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def job(cluster, *arguments):
    """The job's script, running; srun has been called."""
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    environment = os.environ | slurm | {"PATH": f"{cluster}:{os.environ['PATH']}", "RUN": str(cluster / "run")}
    process = subprocess.Popen(["bash", str(SLURM), *arguments], env=environment, cwd=cluster)
    deadline = time.monotonic() + 20
    while not (cluster / "called").is_file() or not (cluster / "called").read_text().endswith("\n"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_slurm_command(cluster):
    (cluster / "go").write_text("0")
    process = job(cluster, "--parallel", "fsdp")
    assert process.wait(20) == 0
    arguments = (cluster / "called").read_text().splitlines()
    launcher, config = parsed(arguments[arguments.index("torchrun") + 1 :])
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.rdzv_backend) == ("2", "gpu", "c10d")
    assert (launcher.rdzv_endpoint, launcher.rdzv_id) == ("node7:29500", "42")
    assert config.command == "pretrain" and config.resume and config.parallel == "fsdp"
    assert config.out == str(cluster / "run") and not (cluster / "requeued").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["time-limit", "preempted"])
def test_slurm_stops_saves_and_is_queued_again(cluster, number):
    process = job(cluster)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert (cluster / "saved").exists() and (cluster / "requeued").read_text() == "requeue 42\n"


def test_slurm_job_that_failed_is_not_queued_again(cluster):
    (cluster / "go").write_text("3")
    assert job(cluster).wait(20) == 3
    assert not (cluster / "requeued").exists()


def test_slurm_lines(cluster):
    """The signal comes first to the script, before the launcher's patience and the time limit end."""
    lines = [line.removeprefix("#SBATCH --") for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    options = dict(line.partition("=")[::2] for line in lines)
    assert options["ntasks-per-node"] == "1" and "requeue" in options and options["open-mode"] == "append"
    assert options["signal"] == "B:USR1@300"
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0


def test_kubernetes():
    spec = yaml.safe_load((EXAMPLES / "pretrain_kubernetes.yaml").read_text())
    assert (spec["apiVersion"], spec["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = spec["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1 and set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure"
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch" and container["command"] == ["torchrun"]
        launcher, config = parsed(container["args"])
        assert launcher.shutdown_timeout < pod["terminationGracePeriodSeconds"]
        assert config.command == "pretrain" and config.resume
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert config.data.startswith(mounts["data"]) and config.out.startswith(mounts["data"])
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == spec["spec"]["nprocPerNode"]
