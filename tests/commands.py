"""The command in a process of its own, and what it reads and leaves."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import ml_collections

from cdisc import checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked(name: str) -> str:
    """The commands between the lines "<!-- NAME -->" and "<!-- end -->" of the README."""
    return re.search(rf"^<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->$", README, re.DOTALL | re.MULTILINE).group(1)


def command(*arguments: str | pathlib.Path) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "cdisc.main", *map(str, arguments)]


def run_command(*arguments: str | pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs the command to its end."""
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=900
    )


def config_of(file: str, *variant: str) -> ml_collections.ConfigDict:
    """The configuration in a file of configs/."""
    return runpy.run_path(str(ROOT / "configs" / file))["get_config"](*variant)


def arrays_of(folder: pathlib.Path) -> dict[str, jax.Array]:
    """All arrays of a checkpoint, by their names in it."""
    leaves = json.loads((folder / "manifest.json").read_text())["leaves"]
    like = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in leaves.items()}
    return checkpoints.restore(folder, like)
