"""The README's commands and its notebook example are true."""

import re
import shlex

import pytest
from commands import README, ROOT, marked


def test_every_shell_command_is_run_by_ci_or_a_test():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    ran = re.findall(r"\$\(readme ([a-z-]+)\)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    # tests/test_pretrained.py runs the one that needs a network of the person's own, tests/test_launch.py those that
    # need a cluster.
    assert sorted(marked(name) for name in [*ran, "pretrained", "launch"]) == sorted(blocks)


@pytest.mark.parametrize("name", ["main-job", "more-commands", "dry-run", "hosts", "faces"])
def test_commands_name_files_that_exist(name):
    words = shlex.split(marked(name), comments=True)
    for word in words:
        for option in ("--config=", "--query="):
            if word.startswith(option):
                assert (ROOT / word.removeprefix(option).split(":")[0]).is_file()


def test_the_example_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (16, 2)
    # The query lies between the two components: one explains each coordinate, their product lies on the query.
    assert abs(names["found"].teacher.mean - 1.0).max() < 0.2
