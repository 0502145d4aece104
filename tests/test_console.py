import io
import logging
import signal
import sys

import pytest

from cdisc import console, signals


def test_lines_go_where_they_belong(capsys):
    # Catches: results on standard error, or warnings among the results.
    console.say("said")
    console.warn("warned")
    console.fail("failed")
    out, err = capsys.readouterr()
    assert out == "said\n"
    assert err == "cdisc: warning: warned\ncdisc: failed\n"


@pytest.fixture
def restored_levels(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    names = ("orbax", "jax", "jax._src.xla_bridge", "matplotlib", "PIL")
    levels = {name: logging.getLogger(name).level for name in names}
    yield names
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_quiet_libraries(restored_levels):
    for name in restored_levels:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.NOTSET)
    console.quiet_libraries()
    told = [name for name in restored_levels if logging.getLogger(name).isEnabledFor(logging.WARNING)]
    assert told == ["jax._src.xla_bridge"]  # whose warning is that an accelerator is there and cannot be used
    assert not logging.getLogger("orbax").isEnabledFor(logging.ERROR)
    assert logging.getLogger("cdisc").isEnabledFor(logging.WARNING)
    # Catches: a level, which absl's `app.run` resets.
    record = logging.LogRecord("absl", logging.ERROR, "", 0, "said again", None, None)
    assert not logging.getLogger("absl").filter(record)


class Last:
    """Raises where nobody can catch it."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_what_threads_say_after_a_save_that_failed(restored_levels, capsys):
    # Catches: tracebacks beside the sentence that the disk is full, and silence about anything else.
    console.quiet_libraries()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another")):
        Last(error)
    error = capsys.readouterr().err
    assert "another" in error
    assert "Event loop" not in error


def test_progress_yields_all_items_in_order(capsys):
    assert list(console.progress(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_a_loop_stops_between_two_items_or_by_itself(monkeypatch):
    # Catches: training that ends between its own look for a signal and the next step, before it has saved.
    monkeypatch.setattr(signals, "_asked", None)
    done = []
    with pytest.raises(signals.Stopped):
        for item in console.progress(range(3), "steps"):
            done.append(item)
            signals.ask(signal.SIGTERM)
    assert done == [0]
    assert list(console.progress(range(3), "steps", stops=False)) == [0, 1, 2]


def test_progress_elsewhere_than_on_a_terminal(capsys, monkeypatch):
    # A line when 20 s have passed, of the speed in them. Catches: counting an earlier run's items into the speed, or
    # the slow start into what follows; a line for each item.
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for item in console.progress(range(10, 10000), "train", total=10000, first=10):
        now[0] += {10: 100.0, 11: 15.0, 12: 15.0}.get(item, 0.01)
        if item == 2100:
            break
    assert capsys.readouterr().out == (
        "  train: 11/10000, 100 s each, 277:28:20 left\n"
        "  train: 13/10000, 15 s each, 41:36:45 left\n"
        "  train: 2014/10000, 100 a second, 01:19 left\n"
    )


def test_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(console.progress(range(3), "steps", total=5, first=2)) == [0, 1, 2]
    assert "steps" in terminal.getvalue()
    assert "2/5" in terminal.getvalue()
