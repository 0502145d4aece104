"""What all tests share: strict shapes, quick compilation, and else the command's own settings of JAX."""

import os
import signal

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Compiles in half the time of the command's own level, and compiling is nearly all that the tests do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# As the command does before JAX is first used: the other compiler options, and compilations kept for the next time.
from cdisc import runtime

runtime.configure()

# A shell starts what runs behind it with Ctrl-C ignored, `nohup` with SIGHUP; the command would leave it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
