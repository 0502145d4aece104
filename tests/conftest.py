"""What all tests share: strict shapes, and the command's own settings of JAX."""

import os

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# As the command does before JAX is first used: the same compiler options, and compilations kept for the next time.
from cdisc import runtime

runtime.configure()
