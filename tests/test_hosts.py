"""Several processes over the loopback address: they compute what one does, and end together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import toy_run
from commands import ROOT, assert_same_checkpoints, command, run_command

from cdisc.app import checkpoints, hosts
from cdisc.errors import UserError

CONFIG = f"--config={ROOT}/configs/mixture.py"
DISCOVERY = [
    CONFIG,
    "--stages=pretrain,discover",
    "--config.discover.timesteps=(100,300)",
    "--config.discover.starts_per_t=4",
    "--config.discover.capacity=16",
    "--config.discover.hierarchy=()",
    "--config.discover.max_steps=15",
    "--config.discover.curvature_iterations=2",
    "--config.discover.max_curvature=inf",
    "--config.evaluate.num_queries=3",
]
LOST = (os.EX_TEMPFAIL, -signal.SIGABRT)
"""How a process ends whose other one has died: by the network's word or by JAX's."""


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# What a cluster says of itself is all that these processes know.
MEMBER = """
import jax

from cdisc import console
from cdisc.app import hosts

hosts.connect(None, None, None, 120.0)
me = jax.process_index()
console.say("said by the first")
print("GPUs", jax.config.read("jax_cuda_visible_devices"))
print(hosts.gather("first" * (1 - me) + "häsön" * me), hosts.gather(), flush=True)
try:
    hosts.require_alike(same=1, other={"n": me})
except Exception as error:
    print(error, flush=True)
hosts.leave(0)
"""


@pytest.fixture(scope="module")
def members():
    """Two processes as Slurm would start them, which the tests that follow need not wait for."""
    host, _, port = address().partition(":")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_COORDINATOR_BIND_ADDRESS": f"{host}:{port}", "JAX_COORDINATOR_PORT": port}
    environment |= {"SLURM_JOB_ID": "42", "SLURM_STEP_NODELIST": f"{host},another", "SLURM_NTASKS": "2"}
    environment |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            env=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    yield processes
    for process in processes:
        with process:
            process.kill()


def together(count: int, workdir: pathlib.Path, *arguments: str, devices: int = 1) -> list[tuple[int, str]]:
    """Exit codes and errors of toy runs, each with so many devices."""
    coordinator = address()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_BIND_ADDRESS": coordinator}
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    script = [sys.executable, str(ROOT / "tests" / "toy_run.py"), CONFIG, f"--workdir={workdir}", *arguments]
    processes = [
        subprocess.Popen(
            [*script, f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={i}"],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def test_training_and_queries_on_two_then_four_then_one_process(members, tmp_path, monkeypatch):
    """The first of two, with two devices each, is killed, then one of four is asked to stop, and one goes on alone."""
    monkeypatch.setattr(toy_run.pretrain_lib, "init", toy_run.init)
    run = tmp_path / "run"
    two = together(2, run, "--victim=0", f"--signal={signal.SIGKILL}", "--call=13", devices=2)
    # Catches: an error that follows from another's death and counts as a mistake, with code 1.
    assert two[0][0] == -signal.SIGKILL
    assert two[1][0] in LOST, two
    assert checkpoints.steps(run / "pretrain" / "train") == [10]
    # Catches: results of the second process that are not written, or not whole.
    assert all((run / "discover" / f"query_{i:04d}").exists() for i in range(toy_run.QUERIES))

    # JAX agrees on SIGTERM alone. Catches: processes that stop at different steps, of which the first ones wait for the
    # others; a Ctrl-C that only one of them hears of.
    four = together(4, run, "--victim=2", f"--signal={signal.SIGINT}", "--call=5")
    assert [code for code, _ in four] == [143] * 4, four
    assert all("stopped by SIGTERM" in text for _, text in four)
    stopped = checkpoints.steps(run / "pretrain" / "train")[-1]
    assert 15 <= stopped < toy_run.STEPS
    metrics = run / "pretrain" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == stopped

    # Catches: a sum over the devices of one process, padding that counts, draws that depend on the devices.
    doubled, average = toy_run.run(run)
    expected_doubled, expected = toy_run.run(tmp_path / "unbroken")
    np.testing.assert_array_equal(doubled, expected_doubled)
    np.testing.assert_array_equal(doubled, 2.0 * np.arange(toy_run.QUERIES))
    np.testing.assert_allclose(average, expected, rtol=1e-5)
    rows, expected_rows = (
        [json.loads(line) for line in (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "unbroken")
    )
    assert [row["step"] for row in rows] == list(range(1, toy_run.STEPS + 1))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in rows], [r[name] for r in expected_rows], rtol=1e-5)


def test_what_processes_that_slurm_started_say_to_one_another(members):
    # Catches: processes that do not find one another by Slurm's variables, a second one that speaks, words that are cut
    # or in another order, one GPU for a process that has a host to itself.
    (first, error), (second, _) = (process.communicate(timeout=90) for process in members)
    assert [process.returncode for process in members] == [0, 0], error
    for text in (first, second):
        gpus, words, unlike = text.splitlines()[-3:]
        assert gpus == "GPUs all"
        assert words == "['first', 'häsön'] ['', '']"
        assert unlike.startswith("process 1 on ")
        assert "has other {'n': 1}, and process 0 on " in unlike
        assert unlike.endswith("has {'n': 0}: run the same command with the same software on hosts that are alike.")
    assert "said by the first" in first
    assert "said by the first" not in second


@pytest.mark.parametrize(
    ("tasks", "nodes", "mpi", "alone"),
    [
        (None, None, None, False),
        ("4", "4", None, True),
        ("32", "4", None, False),
        ("4", "4", "8", False),  # Slurm's are those of Open MPI's own processes
        (None, None, "1", True),
    ],
)
def test_which_process_has_all_devices_of_its_host(monkeypatch, tasks, nodes, mpi, alone):
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "OMPI_COMM_WORLD_LOCAL_SIZE")
    for name, value in zip(names, (tasks, nodes, mpi), strict=True):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert hosts._alone_on_host() == alone


def launched(count: int, *arguments: str) -> subprocess.CompletedProcess:
    script = [sys.executable, "launch/local.py", f"--processes={count}", "--", *arguments]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=900)


def assert_same_discoveries(one: pathlib.Path, other: pathlib.Path):
    for i in range(3):
        assert_same_checkpoints(*(folder / "discover" / f"query_{i:04d}" for folder in (one, other)))


@pytest.fixture(scope="module")
def discovered(tmp_path_factory):
    """What one process discovers."""
    workdir = tmp_path_factory.mktemp("one")
    ended = run_command(*DISCOVERY, f"--workdir={workdir}")
    assert (ended.returncode, ended.stderr) == (0, "")
    return workdir


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_discovery(tmp_path, discovered, count):
    # Catches: keys or companions that depend on the process, several processes that speak or write config.json.
    ended = launched(count, *DISCOVERY, f"--workdir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    (said,) = [line for line in lines if line.startswith("cdisc ")]
    assert f"on {count} cpu device(s) of {count} host(s)" in said
    assert_same_discoveries(discovered, tmp_path)


def test_the_first_goes_alone_and_the_others_after_it(monkeypatch):
    # Catches: a first process that does not wait at the end, or others that do not wait before.
    order = []
    monkeypatch.setattr(hosts, "gather", lambda: order.append("meets"))
    for first, expected in ((True, ["works", "meets"]), (False, ["meets", "works"])):
        monkeypatch.setattr(hosts, "first", lambda first=first: first)
        order.clear()
        with hosts.first_alone():
            order.append("works")
        assert order == expected


def test_all_go_by_what_the_first_says(monkeypatch):
    # Catches: each going by what it is shown itself, or by what the last one is.
    monkeypatch.setattr(hosts, "gather", lambda said: ["[1, 2]", said, "null"])
    assert hosts.first_says([]) == [1, 2]


def test_unequal_processes_are_refused(monkeypatch):
    # Catches: comparing with oneself, or naming the wrong process.
    said = [
        '["a", {"jax": "1", "devices": 4}]',
        '["b", {"jax": "1", "devices": 4}]',
        '["c", {"jax": "1", "devices": 8}]',
    ]
    monkeypatch.setattr(hosts, "gather", lambda text: said)
    with pytest.raises(
        UserError, match=r"^process 2 on c has devices 8, and process 0 on a has 4: run the same command"
    ):
        hosts.require_alike(jax="1", devices=4)
    said[2] = '["c", {"jax": "1", "devices": 4, "more": 1}]'
    with pytest.raises(UserError, match=r"^process 2 on c has more 1, and process 0 on a has None"):
        hosts.require_alike(jax="1", devices=4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_is_not_shared(monkeypatch, tmp_path, shared):
    # Catches: taking for shared what was copied to each host or left there by a run before; a file that stays.
    own, other = tmp_path / "own", tmp_path / ("own" if shared else "other")
    for folder in (own, other):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    said = []

    def gather(value):
        said.append(value)
        return [value, "null"] if len(said) == 1 else [value, str((other / json.loads(said[0])).exists())]

    monkeypatch.setattr(hosts, "gather", gather)
    with contextlib.nullcontext() if shared else pytest.raises(UserError, match="of process 1 is another folder"):
        hosts.require_shared(own)
    assert [path.name for path in own.iterdir()] == ["config.json"]

    (own / "mark").touch()
    answers = iter([lambda value: ['"mark"', value], lambda value: ["True", value]])
    monkeypatch.setattr(hosts, "gather", lambda value: next(answers)(value))
    monkeypatch.setattr(hosts, "first", lambda: False)
    with contextlib.nullcontext() if shared else pytest.raises(UserError, match="of process 1 is another folder"):
        hosts.require_shared(other)


def test_a_coordinator_that_does_not_answer():
    # Catches: JAX's abort, with code 134, before our own time is up.
    coordinator = address()
    options = [f"--coordinator={coordinator}", "--num_processes=2", "--process_id=1", "--connect_seconds=2"]
    ended = subprocess.run(
        command(CONFIG, "--workdir=nowhere", *options), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(
        f"cdisc: not all processes came together at the coordinator {coordinator} within 2 s"
    )
    assert len(ended.stderr.splitlines()) == 1


def test_a_process_that_is_stopped_while_it_waits_for_the_others():
    # Catches: waiting on until all have come, which may take an hour, and a launcher's patience less.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        coordinator = f"127.0.0.1:{silent.getsockname()[1]}"
        options = [f"--coordinator={coordinator}", "--num_processes=2", "--process_id=1", "--connect_seconds=100"]
        process = subprocess.Popen(
            command(CONFIG, "--workdir=nowhere", *options), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        silent.settimeout(120)
        with silent.accept()[0]:
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (-signal.SIGTERM, "")


def test_a_port_that_is_taken(monkeypatch):
    # Catches: JAX's report of a server that cannot start.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^--coordinator is {coordinator}, and that port cannot be used here \("):
            hosts.connect(coordinator, 2, 0, 60.0)


class ConfigException(Exception):  # noqa: N818
    """As Kubernetes' own, which is of no other kind."""


@pytest.mark.parametrize("error", [ValueError, ConfigException])
def test_no_way_to_find_the_others(monkeypatch, error):
    monkeypatch.setattr(hosts.signals, "handle", lambda *given: None)
    # Catches: a traceback of JAX's or of a cluster's for what the person has left out.
    with pytest.raises(UserError, match=r"^--coordinator is 'here': give HOST:PORT"):
        hosts.connect("here", 2, 0, 1.0)

    def initialize(*given, **known):
        raise error("coordinator_address should be defined.")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match=r"together \(coordinator_address should be defined\.\): give --coordinator"):
        hosts.connect(None, None, None, 60.0)
