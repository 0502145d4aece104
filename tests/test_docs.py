"""What the pages say exists: functions, tests, files, numbers of the bundled networks; and that the examples run."""

import ast
import hashlib
import importlib
import re

import numpy as np
import pytest
from commands import README, ROOT

from cdisc.networks import bundled

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
NAMED = sorted({(page, name) for page, text in PAGES.items() for name in re.findall(r"`(cdisc\.[\w.]*\w)`", text)})


def named(name: str) -> object:
    """What a dotted name stands for."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize(("page", "name"), NAMED)
def test_what_a_page_names_exists(page, name):
    # Catches: a function that was renamed and still stands on a page.
    if name != "cdisc.main":  # which is the command
        assert named(name) is not None


def _rows(page: str) -> list[list[str]]:
    """The cells of the first table of a page."""
    table = re.search(r"(?:^\|.*\n)+", PAGES[page], re.MULTILINE).group()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_equation_has_a_function_and_a_test_that_exist():
    # Catches: an equation left out, a test that was renamed.
    rows = _rows("equations")
    assert [row[0] for row in rows] == [str(number) for number in range(1, 16)]
    for _, _, functions, tests in rows:
        assert re.findall(r"`(cdisc\.[\w.]+)`", functions)
        ((module, test),) = re.findall(r"`(test_\w+)\.(test_\w+)`", tests)
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_zoo_has_every_network_as_it_is():
    # Catches: a network that was trained anew, and a page that still tells of the old one.
    names = sorted(path.stem for path in bundled.FOLDER.glob("*.npz"))
    parameters = {row[0].strip("`"): int(row[3].replace(",", "")) for row in _rows("zoo")}
    assert sorted(parameters) == names
    for name in names:
        path = bundled.FOLDER / f"{name}.npz"
        with np.load(path) as archive:
            assert sum(archive[key].size for key in archive if key.startswith("array:")) == parameters[name]
        assert f"| `{name}.npz` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in PAGES["zoo"]


@pytest.mark.parametrize("page", ["README", *PAGES])
def test_links_lead_to_files_that_exist(page):
    text, folder = (README, ROOT) if page == "README" else (PAGES[page], ROOT / "docs")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (folder / target).exists(), target


def test_the_citation_and_the_changelog_have_the_version():
    version = importlib.import_module("cdisc").__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_s_page_has_every_flag_and_what_it_says():
    # Catches: a flag that is new or gone, or whose meaning has changed.
    source = (ROOT / "cdisc" / "app" / "cli.py").read_text(encoding="utf-8")
    flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)",\s*[^,]+,\s*"([^"]+)"', source)
    page = (ROOT / "docs" / "api" / "command.md").read_text(encoding="utf-8")
    assert flags == re.findall(r"\| `--(\w+)` \| (.+) \|", page)
    assert len(flags) == len(re.findall(r"^_\w+ = \w*flags\.DEFINE_", source, re.MULTILINE))
