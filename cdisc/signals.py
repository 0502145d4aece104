"""Ctrl-C and SIGTERM: noted when they come, obeyed where a run can stop.

Python's own way, an exception raised wherever the program happens to be, does not work here: raised in the callback of
a weak reference or in a finaliser it is lost and the run goes on (2 of 250 interrupts while Orbax wrote), and raised
elsewhere in Orbax it can end in the traceback of an executor. So a signal only leaves a note, and the loops of the
stages look for it between two steps, where nothing is half done (`obey`). What XLA is computing or compiling is never
interrupted, nor is the training of a judge: a run stops when that is over.

A second Ctrl-C does not wait: it ends the process at once, wherever it is. As with a kill, only what was not saved is
lost, because every file is written whole or not at all.

SIGINT ends a run with code 2, like every error that the user can fix. SIGTERM, by which schedulers take machines back,
ends it with 143: 128 + 15, what shells report of a process that SIGTERM has ended, so that a launcher that restarts
preempted runs need not know cdisc.
"""

import os
import signal
import threading
from types import FrameType

from cdisc import console

CODES = {signal.SIGINT: 2, signal.SIGTERM: 143}
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
    for number in CODES:
        signal.signal(number, _note)
    threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True).start()


def take_back() -> None:
    """Undoes what a library has done to the handlers; to be called by the main thread."""
    for number in CODES:
        signal.signal(number, signal.getsignal(number))


def asked() -> bool:
    """Whether a signal has asked the run to stop."""
    return _asked is not None


def behind(code: int) -> int:
    """The number of the signal that the run obeys if it ends with `code`; 0 if it ends for a reason of its own."""
    return int(_asked) if _asked is not None and CODES[_asked] == code else 0


def ask(number: signal.Signals) -> None:
    """Asks the run to stop as that signal would."""
    _note(number, None)


def obey() -> None:
    """Stops the run here if a signal has asked for it.

    Raises:
      Stopped: if so.
    """
    if _asked is not None:
        raise Stopped(_asked)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = _asked or signal.Signals(number)


def _end_at_the_second(reader: int) -> None:
    _wait_for_interrupt(reader)
    console.say("stopping when the present step is done; Ctrl-C once more stops at once.")
    _wait_for_interrupt(reader)
    console.fail("stopped at once; the same command goes on from what was finished.")
    os._exit(CODES[signal.SIGINT])


def _wait_for_interrupt(reader: int) -> None:
    number = 0
    # SIGTERM is not counted: some launchers send it both to the process and to its group.
    while number != signal.SIGINT:
        number = os.read(reader, 1)[0]
        if number in CODES:
            _note(number, None)  # already now, for who waits while the main thread computes or connects
