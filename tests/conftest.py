"""One strict setting for all tests: shapes broadcast only where the code says so."""

import os

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
