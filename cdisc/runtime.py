"""The environment of JAX, set before it is first used: XLA's options and the compilation cache."""

import importlib.metadata
import os
import pathlib

from cdisc import console

# Halves the time of a convolution's training step on a CPU. XLA refuses flags that it does not know, so it is given
# only to the versions that were tried.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_CPU_FLAG_VERSIONS = ("0.10.", "0.11.", "0.12.")


def configure() -> None:
    """Sets what the person has not set, and keeps the libraries quiet."""
    console.quiet_libraries()
    options = os.environ.get("XLA_FLAGS", "")
    if "ynn_fusion_type" not in options and importlib.metadata.version("jaxlib").startswith(_CPU_FLAG_VERSIONS):
        os.environ["XLA_FLAGS"] = f"{options} {_CPU_FLAG}".strip()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "cdisc" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
