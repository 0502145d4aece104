"""Ctrl-C, SIGTERM and SIGHUP: noted when they come, obeyed where a run can stop.

Python's own way, an exception raised wherever the program happens to be, does not work here: raised in the callback of
a weak reference or in a finaliser it is lost and the run goes on (2 of 250 interrupts while Orbax wrote), and raised
elsewhere in Orbax it can end in the traceback of an executor. So a signal only leaves a note, and loops look for it
between two items, where nothing is half done (`obey`; `console.progress` does so). What XLA is computing or compiling
is never interrupted, nor is the training of a judge: a run stops when that is over.

A second Ctrl-C does not wait: it ends the process at once, wherever it is. As with a kill, only what was not saved is
lost, because every file is written whole or not at all.

SIGINT ends a run with code 2, like every error that the user can fix. SIGTERM, by which schedulers take machines back,
and SIGHUP, by which a terminal goes, end it with 128 and their number, what shells report of a process that they have
ended, so that a launcher that restarts preempted runs need not know cdisc.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

CODES = {signal.SIGINT: 2, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""The exit code of a run that the signal has stopped."""

_asked: signal.Signals | None = None


class Stopped(BaseException):
    """A run has stopped because a signal asked for it.

    Attributes:
      code: the exit code.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"stopped by {number.name}; the same command goes on from what was finished.")
        self.code = CODES[number]


def install() -> None:
    """Notes the signals from now to the end of the process; call it from the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python calls its handlers between two instructions of the main thread, so never during a long computation. The
    # wake-up pipe gets its byte when the signal comes, and another thread reads it.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handle()
    threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True).start()


def ask(number: int, frame: FrameType | None = None) -> None:
    """Asks the run to stop as that signal would; the first one counts."""
    global _asked
    _asked = _asked or signal.Signals(number)


def handle(handler: Callable[[int, FrameType | None], Any] | int = ask, numbers: Iterable[int] = CODES) -> None:
    """Gives signals to a handler; again where a library may have taken them. Ignored ones stay so, as under nohup."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal has asked the run to stop."""
    return _asked is not None


def obey() -> None:
    """Stops the run here if a signal has asked for it.

    Raises:
      Stopped: if so.
    """
    if _asked is not None:
        raise Stopped(_asked)


def _end_at_the_second(reader: int) -> None:
    for stream, line in (
        (sys.stdout, "stopping when the present step is done; Ctrl-C once more stops at once.\n"),
        (sys.stderr, "cdisc: stopped at once; the same command goes on from what was finished.\n"),
    ):
        # SIGTERM is not counted: some launchers send it both to the process and to its group.
        while os.read(reader, 1)[0] != signal.SIGINT:
            pass
        stream.write(line)  # at once, for the main thread may be writing too
        stream.flush()
    os._exit(CODES[signal.SIGINT])
