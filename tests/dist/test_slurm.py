"""The sbatch files, with a Slurm that is played by small scripts: both "nodes" are this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import read_records
from megatron_aia.config import dump

REPOSITORY = Path(__file__).parents[2]
SLURM = REPOSITORY / "examples" / "slurm"

SRUN = """#!/bin/bash
# Runs the command once a node, as srun does with one task a node; hands SIGTERM on.
echo "$@" >> "$PLAYED/srun"
while [[ $1 == --* ]]; do [[ $1 == *=* ]] && shift || shift 2; done
for node in 0 1; do SLURM_NODEID=$node SLURM_PROCID=$node "$@" & tasks+=($!); done
echo "${tasks[@]}" > "$PLAYED/tasks"
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$PLAYED/scontrol"
[[ $1 == show ]] && printf 'localhost\\nlocalhost\\n' || true
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "$PLAYED/scancel"
kill -TERM $(cat "$PLAYED/tasks")
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes, with two processes each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PLAYED": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "NPROC_PER_NODE": "2",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "LOGS": str(tmp_path / "logs"),
        "DATA": str(write_dataset(tmp_path / "data")),
        "WEIGHTS": str(tmp_path / "weights"),
        "RUN": str(tmp_path / "run"),
    }


@pytest.fixture
def flags(slurm: dict[str, str], tmp_path: Path) -> list[str]:
    """What makes a tiny run of the sbatch file's command; its first weights are there."""
    data, weights = Path(slurm["DATA"]), slurm["WEIGHTS"]
    layout = Layout({"tensor_model_parallel_size": 2})
    first = run_config(data, layout, train_iters=1, save=weights)
    spawn(train, 2, first)
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(run_config(data, layout, train_iters=2000)))
    return ["--config", str(config), "--save-interval", "4"]


def start(file: str, slurm: dict[str, str], flags: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        command = ["bash", str(SLURM / file), *flags]
        return subprocess.Popen(command, env=slurm, stdout=output, stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def kill_with_children(agent: int) -> None:
    """Kill torchrun and its processes, which have sessions of their own, as a lost node would."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for process in (agent, *map(int, children)):
        os.kill(process, signal.SIGKILL)


def steps_of(run: str) -> int:
    return read_records(Path(run))[-1].iteration if (Path(run) / "metrics.jsonl").exists() else 0


@pytest.mark.slow  # eight processes start from nothing
def test_a_job_is_stopped_saves_and_is_queued_again(
    slurm: dict[str, str], flags: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "job.out"
    job = start("pretrain_emu3_aia.sbatch", slurm, flags, log)
    wait_for(lambda: steps_of(slurm["RUN"]) >= 3 or job.poll() is not None, "no step is done")
    job.send_signal(signal.SIGTERM)
    job.wait(240)
    text = log.read_text()
    stopped = re.search(r"stopped by a signal at iteration (\d+)", text)
    assert stopped, text
    assert (tmp_path / "scontrol").read_text().splitlines()[-1] == "requeue 4711"
    assert (tmp_path / "scancel").read_text() == "--signal TERM 4711\n"
    assert "weights of" in text and "TP 2 x PP 1 x CP 1 x DP 2" in text
    # A file for each process, of both nodes.
    assert len(list((tmp_path / "logs").glob("node_?/*/attempt_0/?/stdout.log"))) == 4

    last = int(stopped[1])
    again = start("pretrain_emu3_aia.sbatch", slurm, [*flags, "--train-iters", str(last + 2)], log)
    assert again.wait(240) == 0, log.read_text()
    # The banner wraps long lines, and torchrun marks each.
    unwrapped = re.sub(r"\s|\[default0\]:", "", log.read_text())
    assert f"{slurm['RUN']},iteration{last}" in unwrapped
    assert steps_of(slurm["RUN"]) == last + 2
    assert (tmp_path / "scontrol").read_text().count("requeue") == 1


def test_the_flags_of_srun(slurm: dict[str, str], tmp_path: Path) -> None:
    """A wrong setting ends the job at once, and what srun was given is all there."""
    (tmp_path / "weights").mkdir()
    container = {"CONTAINER": "aia.sqsh", "CONTAINER_MOUNTS": "/data:/data"}
    environment = {**slurm, **container, "MAX_RESTARTS": "0"}
    flags = ["--num-lyers", "3"]
    job = start("posttrain_janus_pro_aia.sbatch", environment, flags, tmp_path / "job.out")
    assert job.wait(240) != 0
    assert "error: unknown option --num-lyers" in (tmp_path / "job.out").read_text()
    given = (tmp_path / "srun").read_text()
    assert "--nodes 2 --ntasks 2 --ntasks-per-node 1 --kill-on-bad-exit=1" in given
    assert f"--container-image aia.sqsh --container-workdir {REPOSITORY}" in given
    assert f"{REPOSITORY}:{REPOSITORY},{slurm['LOGS']}:{slurm['LOGS']},/data:/data" in given
    assert not (tmp_path / "scancel").exists()


@pytest.mark.parametrize("file", sorted(path.name for path in SLURM.iterdir()))
def test_bash_reads_the_files(file: str) -> None:
    subprocess.run(["bash", "-n", str(SLURM / file)], check=True)


@pytest.mark.slow
def test_the_run_goes_on_without_a_node_that_is_lost(
    slurm: dict[str, str], flags: list[str], tmp_path: Path
) -> None:
    """--nnodes 1:2: two torchrun agents, of which one is killed with all its processes."""
    torchrun = [sys.executable, str(REPOSITORY / "examples" / "torchrun.py"), "--nnodes", "1:2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{slurm['MASTER_PORT']}"]
    torchrun += ["--rdzv-id", "elastic", "--rdzv-conf", "last_call_timeout=5,keep_alive_interval=2"]
    torchrun += ["--max-restarts", "3", "--nproc-per-node", "2"]
    run = slurm["RUN"]
    script = [str(REPOSITORY / "examples" / "pretrain_emu3_aia.sh"), *flags, "--load", run]
    script += ["--save", run, "--pretrained-checkpoint", slurm["WEIGHTS"]]
    agents = []
    for number in range(2):
        with (tmp_path / f"agent_{number}.log").open("wb") as output:
            agents.append(
                subprocess.Popen(
                    [*torchrun, *script],
                    env=slurm,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        time.sleep(2)  # the first one holds the rendezvous
    wait_for(lambda: steps_of(run) >= 6, "no step is done")
    kill_with_children(agents[1].pid)
    lost_at = steps_of(run)
    log = tmp_path / "agent_0.log"
    wait_for(lambda: "x DP 1" in log.read_text(), "the other agent does not start again", 240)
    wait_for(lambda: steps_of(run) > lost_at + 4, "no step is done after the loss", 120)
    kill_with_children(agents[0].pid)
    for agent in agents:
        agent.wait(60)
    text = log.read_text()
    assert "TP 2 x PP 1 x CP 1 x DP 2" in text
    starts = re.findall(r"run,iteration(\d+)", re.sub(r"\s", "", text))
    assert starts and int(starts[-1]) >= lost_at // 4 * 4 - 4
