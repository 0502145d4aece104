"""Signals in a process of its own: none is lost wherever it comes, and only a second Ctrl-C does not wait."""

import signal
import subprocess
import sys

import pytest
from commands import ROOT

from cdisc import signals

LOST_IN_A_CALLBACK = """
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))
Last()
"""
# XLA, too, keeps the main thread from Python's own handlers, and lets other threads run.
COMPUTING = "signals_to(2, signal.{name}); hashlib.pbkdf2_hmac('sha256', b'', b'', {rounds})"
SCRIPT = """
import hashlib, os, signal, sys, threading, time
from cdisc import signals

def signals_to(times, number):
    def send():
        for _ in range(times):
            time.sleep(0.1)
            os.kill(os.getpid(), number)
    threading.Thread(target=send, daemon=True).start()

{before}
signals.install()
assert not signals.asked()
signals.obey()
{what}
assert signals.asked()
try:
    signals.obey()
except signals.Stopped as stopped:
    print(stopped)
    sys.exit(stopped.code)
"""


def ended(what: str, before: str = "") -> subprocess.CompletedProcess:
    script = SCRIPT.format(what=what, before=before)
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("what", "name", "code"),
    [
        (LOST_IN_A_CALLBACK, "SIGINT", 2),
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM", 143),
        ("os.kill(os.getpid(), signal.SIGHUP)", "SIGHUP", 129),
        (COMPUTING.format(name="SIGTERM", rounds=1_000_000), "SIGTERM", 143),
    ],
)
def test_a_signal_is_obeyed_when_the_program_says(what, name, code):
    # Catches: Python's handlers left in place (the interrupt of a finaliser is lost), one code for both, SIGTERM
    # counted like Ctrl-C, which would end the third before its time.
    process = ended(what)
    assert (process.returncode, process.stderr) == (code, "")
    # After Ctrl-C another thread says, at the same time, how to stop at once.
    assert f"stopped by {name}; the same command goes on from what was finished." in process.stdout


def test_a_second_ctrl_c_does_not_wait():
    # Hours of computation. Catches: counting in Python's handlers, which wait for its end.
    process = ended(COMPUTING.format(name="SIGINT", rounds=2**31 - 1))
    assert process.returncode == 2
    assert process.stdout == "stopping when the present step is done; Ctrl-C once more stops at once.\n"
    assert process.stderr == "cdisc: stopped at once; the same command goes on from what was finished.\n"


def test_handlers_are_taken_back_from_a_library():
    # Catches: SIGTERM that goes to whoever came last, and ends the process at once.
    library = "import ctypes; ctypes.CDLL(None).signal(signal.SIGTERM, None)"
    process = ended(f"{library}; signals.handle(); os.kill(os.getpid(), signal.SIGTERM)")
    assert (process.returncode, process.stderr) == (143, "")


def test_the_first_signal_is_the_one_that_counts(monkeypatch):
    monkeypatch.setattr(signals, "_asked", None)
    signals.obey()
    for number in (signal.SIGTERM, signal.SIGINT):
        signals.ask(number)
    with pytest.raises(signals.Stopped) as stopped:
        signals.obey()
    assert stopped.value.code == 143


def test_signals_that_are_ignored_stay_so():
    # Catches: a run under nohup that its terminal takes along.
    process = ended("os.kill(os.getpid(), signal.SIGTERM)", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert process.returncode == 143
    process = ended("os.kill(os.getpid(), signal.SIGHUP)", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert "AssertionError" in process.stderr


def test_little_comes_before_the_command_can_be_stopped():
    # Catches: an import, such as typing's of 20 ms, while Python still answers Ctrl-C with a traceback.
    known = "import sys, signal, importlib; before = set(sys.modules); import cdisc.main; "
    script = f"{known}print(sorted(set(sys.modules) - before))"
    process = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.stdout == "['cdisc', 'cdisc.main']\n"


def test_ctrl_c_while_the_command_starts(tmp_path):
    # Catches: handlers that are installed after the imports, of which one is then in a traceback.
    process = subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "cdisc.main",
            "--config=configs/mixture.py",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "absl" in line:  # the first of what is imported after the handlers were installed
            break
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    said = [line for line in error.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, said) == (
        2,
        ["cdisc: stopped by SIGINT; the same command goes on from what was finished."],
    )
