"""The environment of JAX, set before it is first used: XLA's options and the compilation cache; and versions."""

import importlib.metadata
import importlib.util
import os
import pathlib
import warnings

import cdisc
from cdisc import console
from cdisc.errors import UserError
from cdisc.storage import cache_folder, writable

# Halves the time of a convolution's training step on a CPU. XLA refuses flags that it does not know, so this one is
# given only to versions that were tried.
_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_CONVOLUTIONS_VERSIONS = ("0.10.", "0.11.", "0.12.")

# Compiles in two thirds of the time, and the programs are about as fast: on a CPU the work is in convolutions, which
# are library calls. It would affect an accelerator's compiler too, where the work is in the compiled code.
_COMPILE_QUICKLY = "--xla_backend_optimization_level=1"


def configure() -> None:
    """Sets what the user has not set, and keeps the libraries quiet."""
    console.quiet_libraries()
    wanted = []
    if _only_cpu():
        wanted.append(_COMPILE_QUICKLY)
        if importlib.metadata.version("jaxlib").startswith(_CONVOLUTIONS_VERSIONS):
            wanted.append(_CONVOLUTIONS)
    given = os.environ.get("XLA_FLAGS", "")
    flags = [given, *(flag for flag in wanted if flag.partition("=")[0] not in given)]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    _keep_compilations()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _keep_compilations() -> None:
    """Has JAX keep what it compiles, if there is a place; it goes without, and says nothing, where that fills up."""
    name = "JAX_COMPILATION_CACHE_DIR"
    try:
        if name not in os.environ:
            os.environ[name] = str(cache_folder("xla"))
        if os.environ[name] and "://" not in os.environ[name]:
            writable(pathlib.Path(os.environ[name]), f"set {name} to another folder")
    except UserError as error:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        console.warn(f"every run compiles anew: {error}")
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def versions() -> dict[str, str]:
    """The software and the device of this process."""
    import jax  # which reads its environment when it is first used

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"cdisc": cdisc.__version__, **found, "device": jax.devices()[0].device_kind}


def _only_cpu() -> bool:
    """Whether JAX will find no accelerator, judged by what is installed: asking JAX itself would start it."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and all(importlib.util.find_spec(name) is None for name in ("jax_plugins", "libtpu"))
