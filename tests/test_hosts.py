"""Several processes over the loopback address: they compute what one does, and end together."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import toy_run
from commands import ROOT, command, run_command

from cdisc import signals
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
SENTENCE = re.compile(r"^cdisc: process (\d) ends because another one does not answer any more", re.MULTILINE)


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# What a cluster says of itself is all that these processes know. The second one says so in a collective, and dies.
MEMBER = """
import os
import signal

import jax
from jax._src import xla_bridge

from cdisc import console
from cdisc.app import devices, hosts

hosts.connect(None, None, None, 120.0)
me = jax.process_index()
console.say("said by the first")
said = [bool(devices.any_process(me == 1 and turn == 1)) for turn in range(3)]
print("GPUs", xla_bridge.CUDA_VISIBLE_DEVICES.value)
print(hosts.gather(str(me)), said, flush=True)
if me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
with hosts.patient():
    while True:
        bool(devices.any_process(False))
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
    # Catches: JAX's abort, with code 134, or an error that follows from it, with 1.
    assert [code for code, _ in two] == [-signal.SIGKILL, os.EX_TEMPFAIL], two
    assert SENTENCE.findall(two[1][1]) == ["1"]
    assert checkpoints.steps(run / "pretrain" / "train") == [10]
    # Catches: results of the second process that are not written, or not whole.
    assert all(checkpoints.exists(run / "discover" / f"query_{i:04d}") for i in range(toy_run.QUERIES))

    four = together(4, run, "--victim=2", f"--signal={signal.SIGTERM}", "--call=5")
    # Catches: processes that stop at different steps, of which the first ones wait for the others.
    assert [code for code, _ in four] == [143] * 4, four
    assert all("stopped by SIGTERM" in text for _, text in four)
    stopped = checkpoints.steps(run / "pretrain" / "train")[-1]
    assert 15 <= stopped < 20
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


def test_the_death_of_a_process_that_slurm_started(members):
    # Catches: processes that do not find one another by Slurm's variables, a second one that speaks, a collective that
    # others do not hear, JAX's own patience of 100 s with one that has died, what follows from its death before that,
    # one GPU for a process that has a host to itself.
    (first, error), (second, _) = (process.communicate(timeout=90) for process in members)
    assert [process.returncode for process in members] == [os.EX_TEMPFAIL, -signal.SIGKILL], error
    for text in (first, second):
        assert text.splitlines()[-2:] == ["GPUs all", "['0', '1'] [False, True, False]"]
    assert "said by the first" in first
    assert "said by the first" not in second
    assert SENTENCE.findall(error) == ["0"]


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
        expected, found = (checkpoints.arrays_of(folder / "discover" / f"query_{i:04d}") for folder in (one, other))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


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
    assert [line for line in lines if line.startswith("cdisc ")] == lines[:1]
    assert f"on {count} cpu device(s) of {count} host(s)" in lines[0]
    assert_same_discoveries(discovered, tmp_path)


class Store:
    """What processes have said, as the coordination service keeps it, in no order; others say theirs after a while."""

    def __init__(self, others):
        self.said, self.others, self.asked = {}, others, 0

    def key_value_set(self, key, value):
        self.said[key] = value

    def key_value_dir_get(self, folder):
        self.asked += 1
        if self.asked == 3:
            self.said |= {folder + name: value for name, value in self.others.items()}
        return [(key, value) for key, value in self.said.items() if key.startswith(folder)]


@pytest.fixture
def third_of_twelve(monkeypatch):
    """This process as one of several, of which the others say their own numbers."""
    store = Store({f"{i:06d}": str(i) for i in reversed(range(12)) if i != 2})
    monkeypatch.setattr(hosts, "_client", lambda: store)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 2)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 12)
    return store


def test_gathering_waits_for_all_and_sorts(third_of_twelve, monkeypatch):
    # Catches: going on with those that are there, the order in which they came, two meetings in one place.
    assert hosts.gather("2") == [str(i) for i in range(12)]
    assert third_of_twelve.asked == 3
    monkeypatch.setattr(signals, "_asked", signal.SIGTERM)
    with pytest.raises(signals.Stopped):
        hosts.gather("2")


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


def test_errors_that_follow_from_another_s_death_wait_for_its_notice(third_of_twelve, monkeypatch):
    # Catches: waiting with what the person can mend, not waiting long enough, an error that is swallowed.
    waits = []
    monkeypatch.setattr(hosts.time, "sleep", waits.append)
    for error in (UserError("a sentence"), OSError(28, "No space left"), signals.Stopped(signal.SIGTERM)):
        with pytest.raises(type(error)), hosts.patient():
            raise error
    assert waits == []
    with pytest.raises(RuntimeError), hosts.patient():
        raise RuntimeError("Connection closed by peer")
    assert sum(waits) > hosts._HEARTBEAT


class EndedError(Exception):
    """In the place of an end."""


@pytest.fixture
def ends(monkeypatch):
    """An end of the process is an error with its code."""

    def end(code):
        raise EndedError(code)

    monkeypatch.setattr(hosts.os, "_exit", end)


def test_the_last_word(third_of_twelve, ends, monkeypatch, capsys):
    # Catches: a word that is not sent or not followed, another's code, a sentence where this process has its own, a
    # failure after a signal taken for a stop.
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hosts, "_leaving", None)
    for asked, code, word in ((signal.SIGTERM, 143, "2 143 15"), (signal.SIGTERM, 1, "2 1 0"), (None, 2, "2 2 0")):
        monkeypatch.setattr(signals, "_asked", asked)
        with pytest.raises(EndedError, match=str(code)):
            hosts.leave(code)
        assert third_of_twelve.said["cdisc/last_word"] == word
    assert third_of_twelve.asked == 3 + 2  # it stays until all others leave
    monkeypatch.setattr(third_of_twelve, "blocking_key_value_get", lambda key, wait: "7 75 0", raising=False)
    hosts._listen()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(hosts, "_leaving", None)
    with pytest.raises(EndedError, match="75"):
        hosts._listen()
    assert capsys.readouterr().err.startswith(
        "cdisc: process 7 could not go on, and has said why; so this one, 2, ends"
    )
    monkeypatch.setattr(signals, "_asked", None)
    monkeypatch.setattr(third_of_twelve, "blocking_key_value_get", lambda key, wait: "7 143 15")
    hosts._listen()
    assert signals._asked == signal.SIGTERM
    monkeypatch.setattr(signals, "_asked", None)


def test_all_stop_at_the_same_step(third_of_twelve, monkeypatch):
    # Catches: reading an answer at once, which waits for the device, or reading that of another step or none.
    read, stopping = [], []

    class Answer:
        def __init__(self):
            self.step = len(stopping)

        def __bool__(self):
            read.append((self.step, len(stopping)))
            return self.step >= 3

        def block_until_ready(self):
            read.append("ready")

    met = []
    monkeypatch.setattr(hosts, "gather", lambda: met.append("all"))
    monkeypatch.setattr(hosts.devices, "any_process", lambda said: Answer())
    monkeypatch.setattr(signals, "_asked", None)
    asked = hosts.Stopping()
    # Devices meet first when all processes are there, and not when one may be compiling for a minute.
    assert (met, read) == (["all"], ["ready"])
    read.clear()
    for _ in range(7):
        stopping.append(asked())
        assert signals.asked() == any(stopping)
    assert stopping == [False] * 5 + [True, True]
    assert read == [(i - 2, i) for i in range(2, 7)]


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
        return [value, ""] if len(said) == 1 else [value, str((other / said[0]).exists())]

    monkeypatch.setattr(hosts, "gather", gather)
    with contextlib.nullcontext() if shared else pytest.raises(UserError, match="of process 1 is another folder"):
        hosts.require_shared(own)
    assert [path.name for path in own.iterdir()] == ["config.json"]

    (own / "mark").touch()
    answers = iter([lambda value: ["mark", value], lambda value: ["True", value]])
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
    assert process.returncode == 143
    assert error == "cdisc: stopped by SIGTERM; the same command goes on from what was finished.\n"


@pytest.mark.parametrize(("connected", "sentence"), [(False, "not all processes came"), (True, "the processes came")])
def test_whom_a_process_has_waited_for_in_vain(ends, monkeypatch, capsys, connected, sentence):
    # Catches: looking for a coordinator that is there, where it is a device that does not start.
    monkeypatch.setattr(hosts, "_connected", connected)
    monkeypatch.setattr(signals, "_asked", None)
    with pytest.raises(EndedError, match="2"):
        hosts._end_before(threading.Event(), 0.0)
    assert capsys.readouterr().err.startswith(f"cdisc: {sentence}")


class ConfigException(Exception):  # noqa: N818
    """As Kubernetes' own, which is of no other kind."""


@pytest.mark.parametrize("error", [ValueError, ConfigException])
def test_no_way_to_find_the_others(monkeypatch, error):
    # Catches: a traceback of JAX's or of a cluster's for what the person has left out.
    with pytest.raises(UserError, match=r"^--coordinator is 'here': give HOST:PORT"):
        hosts.connect("here", 2, 0, 1.0)

    def initialize(*given, **known):
        raise error("coordinator_address should be defined.")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match=r"together \(coordinator_address should be defined\.\): give --coordinator"):
        hosts.connect(None, None, None, 60.0)
