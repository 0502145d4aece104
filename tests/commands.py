"""The command, in this process and in one of its own, and what it reads and leaves."""

import contextlib
import importlib
import io
import os
import pathlib
import re
import subprocess
import sys
import unittest.mock
import warnings

import ml_collections
import numpy as np
from absl import app, flags

from cdisc.app import checkpoints, cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("running.md", "own.md"))
"""Where the commands stand that CI or a test runs."""


def assert_same_checkpoints(one: pathlib.Path, other: pathlib.Path) -> None:
    """That two checkpoints hold the same arrays, to the bit, of the same thing."""
    assert checkpoints.about(one) == checkpoints.about(other)
    found, expected = map(checkpoints.arrays_of, (one, other))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def marked(name: str) -> str:
    """The commands between the lines "<!-- NAME -->" and "<!-- end -->" of the README or a page."""
    return re.search(rf"^<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->$", PAGES, re.DOTALL | re.MULTILINE).group(1)


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


def run_here(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess:
    """Runs the command to its end in this process, which need not start nor compile again what it has compiled."""
    argv = ["cdisc", *map(str, arguments)]
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # of the configuration before
    flags.FLAGS.unparse_flags()
    out, err = io.StringIO(), io.StringIO()
    with (
        unittest.mock.patch.object(sys, "argv", argv),  # where ml_collections looks for overrides
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        # ml_collections reads config files in a way that Python is about to drop.
        warnings.filterwarnings("ignore", r"the load_module\(\)", DeprecationWarning)
        try:
            app.run(cli.main, argv=argv, flags_parser=cli.parse)
        except SystemExit as ended:
            return subprocess.CompletedProcess(argv, ended.code, out.getvalue(), err.getvalue())
    raise AssertionError("the command has not ended")


def config_of(file: str, *variant: str) -> ml_collections.ConfigDict:
    """The configuration in a file of configs/."""
    return importlib.import_module(f"cdisc.configs.{pathlib.Path(file).stem}").get_config(*variant)
