"""The rules of `docs/design.md`: who imports whom, and that what it names exists."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import cdisc

_PACKAGE = pathlib.Path(cdisc.__file__).parent
_PAGE = (_PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")


def _rows(heading: str) -> list[list[str]]:
    section = _PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return cells[2:]


def _part(module: str) -> str:
    """The folder of `cdisc` that a module belongs to, or its own name where it stands beside the folders."""
    return module.split(".")[1] if "." in module else "cdisc"


def _imports(path: pathlib.Path) -> Iterator[str]:
    """The parts of the package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (_part(name) for name in names if name.split(".")[0] == "cdisc")


def _allowed() -> dict[str, set[str]]:
    parts = {part for row in _rows("Who may import whom") for part in re.findall(r"`(\w+)`", row[0])}
    allowed = {}
    for names, _, imports in _rows("Who may import whom"):
        named = set(re.findall(r"`(\w+)`", imports))
        for part in re.findall(r"`(\w+)`", names):
            allowed[part] = parts - named if imports.startswith("everything") else named
    return allowed


def test_every_part_imports_only_what_the_table_allows():
    # Catches: an algorithm that imports the application, the console or storage; a part that the table does not name.
    allowed = _allowed()
    assert allowed["discovery"] == {"errors", "keys", "diffusion"}  # the table is read as it looks
    found = {}
    for path in _PACKAGE.rglob("*.py"):
        part = _part(".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"))
        found.setdefault(part, set()).update(set(_imports(path)) - {part})
    assert {part: imports - allowed[part] for part, imports in found.items() if imports - allowed[part]} == {}
    assert set(found) == set(allowed)


@pytest.mark.parametrize(
    "module",
    ["discovery.concepts", "networks.backbone", "learning.adapt", "evaluation.methods", "evaluation.protocol"],
)
def test_an_algorithm_can_be_imported_without_the_application(module):
    code = f"import sys, cdisc.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    # flax itself imports absl.
    others = {"cdisc.app", "cdisc.data", "orbax", "ml_collections", "matplotlib", "PIL", "tqdm", "clu", "tensorflow"}
    assert others & set(loaded) == set()


@pytest.mark.parametrize("name", [row[0].strip("`") for row in _rows("What each container means")])
def test_the_containers_exist_are_frozen_and_say_what_they_mean(name):
    module, _, container = f"cdisc.{name}".rpartition(".")
    found = getattr(importlib.import_module(module), container)
    assert found.__dataclass_params__.frozen
    assert found.__doc__


def test_the_files_that_the_page_names_exist():
    names = re.findall(r"`((?:cdisc|configs|tests|docs)/[\w./]*)`", _PAGE)
    assert len(names) > 5
    for name in names:
        assert (_PACKAGE.parent / name).exists(), name
