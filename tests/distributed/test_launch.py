"""The launcher on several machines, two of them simulated here, and the Slurm job that starts it."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext, SubprocessContext

from lr2ppo.distributed import launch as torchrun
from lr2ppo.distributed.signals import SAME_SIGNAL_SECONDS
from tests.conftest import REPOSITORY
from tests.helpers.workspace import Workspace

REDUCE = """
import json, os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(10.0 ** dist.get_rank())
dist.all_reduce(total)
rank, local = dist.get_rank(), os.environ["LOCAL_RANK"]
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump([rank, dist.get_world_size(), int(local), total.item()], file)
dist.destroy_process_group()
"""
VARIABLES = ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the launcher in a separate process that can import modules from the folder."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": f"{REPOSITORY}:{folder}", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "lr2ppo.distributed.launch", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_processes_of_two_machines_are_one_group_even_if_each_has_one(tmp_path: Path) -> None:
    (tmp_path / "reduce_ranks.py").write_text(REDUCE, encoding="utf-8")
    shared = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC": "1"}
    machines = [start(tmp_path, "-m", "reduce_ranks", str(tmp_path), NODE_RANK=node, **shared) for node in "01"]
    for machine in machines:
        _, errors = machine.communicate(timeout=120)
        assert machine.returncode == 0, errors
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(tmp_path.glob("*.json"))]
    assert found == [[0, 2, 0, 11], [1, 2, 0, 11]]


@pytest.mark.usefixtures("no_variables")
def test_a_machine_that_finds_no_other_reports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    variables = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NPROC": "1"}
    for name, value in (variables | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["torchrun", "--rdzv-conf", "timeout=1", "-m", "json.tool"])
    with pytest.raises(SystemExit) as ended:
        torchrun.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert f"--master-addr=127.0.0.1 --master-port={port}: the machines did not find each other" in errors
    assert "Start the same script on each machine" in errors


@pytest.mark.usefixtures("no_variables")
def test_one_machine_needs_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("a", "file")
    wanted = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--rdzv-endpoint=a/file"]
    assert torchrun.rendezvous_arguments(torchrun.count_nodes(), file) == wanted
    for name, value in {"NNODES": "1", "NODE_RANK": "x", "MASTER_ADDR": "", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    assert torchrun.rendezvous_arguments(torchrun.count_nodes(), file) == wanted


LISTENING = """
import glob, os, sys
from lr2ppo.distributed.processes import join_processes

with join_processes("cpu") as processes:
    seen = []
    for process in (os.getpid(), os.getppid()):
        sockets = {os.readlink(entry) for entry in glob.glob(f"/proc/{process}/fd/*") if os.path.islink(entry)}
        lines = [line for name in ("tcp", "tcp6") for line in open(f"/proc/{process}/net/{name}").readlines()[1:]]
        rows = [line.split() for line in lines]
        seen += [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    with open(f"{sys.argv[1]}/{processes.rank}", "w") as file:
        print(processes.world_size, *seen, file=file)
    processes.barrier()
"""
# As the system writes it.
LOOPBACK = "0100007F"


@pytest.mark.slow
def test_on_one_machine_no_other_can_reach_the_processes_and_no_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "listening.py").write_text(LISTENING, encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    launcher = start(tmp_path, "-m", "listening", str(tmp_path), NPROC="2", TMPDIR=str(tmp_path / "temporary"))
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    for rank in "01":
        size, *listening = (tmp_path / rank).read_text(encoding="utf-8").split()
        assert size == "2"
        assert set(listening) <= {LOOPBACK}
    assert not list((tmp_path / "temporary").glob("lr2ppo-*"))


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NNODES", "two", "NNODES: found 'two', wanted a whole number of machines"),
        ("NNODES", "0", "NNODES: found '0'"),
        ("NODE_RANK", None, "NODE_RANK: found nothing, wanted this machine's number, 0 to 2"),
        ("NODE_RANK", "3", "NODE_RANK: found 3, wanted this machine's number, 0 to 2"),
        ("NODE_RANK", "-1", "NODE_RANK: found -1"),
        ("MASTER_ADDR", None, "MASTER_ADDR: found nothing, wanted the name or IPv4 address of machine 0"),
        ("MASTER_ADDR", "node0:29500", "MASTER_ADDR: found node0:29500"),
        ("MASTER_PORT", None, "MASTER_PORT: found nothing, wanted a free port of machine 0, 1 to 65535"),
        ("MASTER_PORT", "65536", "MASTER_PORT: found 65536"),
        ("MASTER_PORT", "²", "MASTER_PORT: found ²"),
        ("NPROC", "²", "NPROC: found '²'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str | None, message: str
) -> None:
    sound = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "node-0.cluster", "MASTER_PORT": "29500", "NPROC": "1"}
    for key, text in (sound | {name: value}).items():
        if text is not None:
            monkeypatch.setenv(key, text)
    started: list[object] = []
    monkeypatch.setattr(torchrun, "run", started.append)
    monkeypatch.setattr(sys, "argv", ["torchrun", "-m", "json.tool"])
    with pytest.raises(SystemExit) as ended:
        torchrun.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert name == "NPROC" or "NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 MASTER_PORT=29500" in errors
    assert not started


STUBS = {
    "scontrol": 'test "$*" = "show hostnames node[7-8]" && printf "node7\\nnode8\\n"',
    # As Slurm does: the same command on each machine, with SLURM_NODEID set only there.
    "srun": 'shift\nfor SLURM_NODEID in 0 1; do\n  export SLURM_NODEID\n  "$@"\ndone',
    "python": '[ "$1" = -c ] || echo "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $*"',
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the project on the first machine of a job of two, with stubs for Slurm's commands."""
    workspace = Workspace.make(tmp_path / "lr2ppo")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STUBS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    for name in ("NODE_RANK", "MASTER_PORT", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[7-8]")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(workspace.root))
    return workspace


def submit(cluster: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job as Slurm does: as a copy of its file, from another folder."""
    spool = cluster.root.parent / "spool"
    spool.mkdir(exist_ok=True)
    (spool / "slurm_script").write_bytes((cluster.root / "scripts/slurm/train.sbatch").read_bytes())
    return cluster.run("env", "-C", str(spool), "PYTHON=python", "sh", "slurm_script", *arguments)


def test_the_slurm_job_starts_the_stage_on_each_machine_with_its_number(
    cluster: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "of-another-job")
    done = submit(cluster, "ppo.sh", "big", "notes=two words")
    assert done.returncode == 0, done.stderr
    stage = "-m lr2ppo train ppo --config configs/mini/ppo.yaml name=big notes=two words"
    assert done.stdout.splitlines() == [f"2 {node} node7 24567 {stage}" for node in (0, 1)]


def test_the_slurm_job_keeps_arguments_of_several_words_whole(cluster: Workspace) -> None:
    (cluster.root / "count.sh").write_text('printf "<%s>" "$@"\n', encoding="utf-8")
    assert submit(cluster, "count.sh", "a b", "c=$d '\"").stdout == "<a b><c=$d '\">" * 2


def test_jobs_on_one_machine_have_separate_ports_or_the_given_one(
    cluster: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1239999")
    assert " node7 29999 " in submit(cluster, "ppo.sh", "big").stdout
    monkeypatch.setenv("MASTER_PORT", "4000")
    assert " node7 4000 " in submit(cluster, "ppo.sh", "big").stdout


def test_a_machine_that_fails_ends_the_slurm_job(cluster: Workspace) -> None:
    (cluster.root / "fail.sh").write_text("exit $((3 + NODE_RANK))\n", encoding="utf-8")
    assert submit(cluster, "fail.sh", "big").returncode == 4
    assert "srun --kill-on-bad-exit=1 " in (cluster.root / "scripts/slurm/train.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: sbatch scripts/slurm/train.sbatch ppo.sh NAME"),
        (("ppo.sh",), "usage: sbatch"),
        (("gone.sh", "big"), "gone.sh: found no such script in "),
    ],
)
def test_a_slurm_job_without_a_stage_is_refused(cluster: Workspace, arguments: tuple[str, ...], message: str) -> None:
    done = submit(cluster, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_a_second_signal_ends_processes_that_hang(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(
        "import os, signal, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid-' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    environment = os.environ | {"NPROC": "2", "CUDA_VISIBLE_DEVICES": ""}
    launcher = subprocess.Popen(
        [sys.executable, "-m", "lr2ppo.distributed.launch", str(script)], cwd=REPOSITORY, env=environment
    )
    notes = [tmp_path / f"pid-{rank}" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(note.is_file() and note.read_text() for note in notes):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(SAME_SIGNAL_SECONDS + 0.5)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == 143
    time.sleep(0.5)
    assert not [note for note in notes if is_alive(note)]


def test_a_launcher_without_options_for_stopping_is_changed_to_stop_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    handled: dict[int, object] = {}

    def close(context: object, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        closed.extend([death_sig, timeout])

    def start(context: object) -> None:
        handled.update({number: signal.getsignal(number) for number in before})

    def stop(*_: object) -> None:
        """What such a launcher has handle a fixed list of signals."""

    monkeypatch.setattr(torchrun, "get_args_parser", argparse.ArgumentParser)
    monkeypatch.setattr(PContext, "close", close)
    monkeypatch.setattr(SubprocessContext, "_start", start)
    launchers_own = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in (*launchers_own, signal.SIGUSR1)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert torchrun.stop_options() == []
        for number in launchers_own:
            signal.signal(number, stop)
        SubprocessContext._start(None)  # type: ignore[arg-type]
        PContext.close(None, signal.SIGINT)  # type: ignore[arg-type]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert {number for number, handler in handled.items() if handler is stop} == {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGUSR1,
    }
    assert handled[signal.SIGHUP] is signal.SIG_IGN
    assert closed == [signal.SIGINT, torchrun.SECONDS_TO_STOP]


def is_alive(note: Path) -> bool:
    """Whether a process exists and is not a zombie."""
    status = Path("/proc", note.read_text(), "stat")
    return status.exists() and ") Z" not in status.read_text()
