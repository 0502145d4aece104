"""The README's commands and its notebook example are true."""

import configparser
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


def test_extras_that_are_named_exist():
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg")
    text = README + (ROOT / "launch" / "slurm.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"'\.\[(\w+)\]'", text))
    assert {"cuda", "tpu", "faces", "test"} <= named <= set(metadata["options.extras_require"])


def test_commands_for_celeba_say_where_it_is():
    texts = [README, *((ROOT / "launch" / name).read_text(encoding="utf-8") for name in ("slurm.sh", "tpu_pod.sh"))]
    lines = [line for text in texts for line in re.sub(r"\\\n#?\s*", "", text).splitlines()]
    commands = [line for line in lines if re.search(r"--config=configs/celeba\.py .*--workdir", line)]
    assert len(commands) == 4
    assert all("--config.data.root=" in command for command in commands)


def test_the_example_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (16, 2)
    # The query lies between the two components: one explains each coordinate, their product lies on the query.
    assert abs(names["found"].teacher.mean - 1.0).max() < 0.2
