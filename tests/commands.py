"""The command in a process of its own, and what it reads and leaves."""

import os
import pathlib
import re
import runpy
import subprocess
import sys

import ml_collections

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked(name: str) -> str:
    """The commands between the lines "<!-- NAME -->" and "<!-- end -->" of the README."""
    return re.search(rf"^<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->$", README, re.DOTALL | re.MULTILINE).group(1)


ONE_BLOCK = tuple(
    f"--config.network.{field}"
    for field in (
        "block_out_channels=(8,)",
        "down_block_types=('DownBlock2D',)",
        "up_block_types=('UpBlock2D',)",
        "add_attention=False",
        "patch_size=8",
    )
)
"""A network of one block on 4 x 4 patches, so that what is tested is the command and not the training."""


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
