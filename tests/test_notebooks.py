"""The notebooks run from top to bottom, and show what they are kept with."""

import ast
import json

import pytest
from commands import ROOT
from test_docs import named

import cdisc

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind: str) -> list[str]:
    """The sources of a notebook's cells of one kind."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["1_plane", "2_digits", "3_concepts", "4_faces"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_opens_in_colab_and_names_what_exists(path):
    # Catches: a name of the facade that is gone, a module that has moved, a cell that was edited and not run.
    assert "colab-badge.svg" in cells(path, "markdown")[0]
    install, *code = cells(path, "code")
    assert "%pip install" in install
    used = {
        node.attr
        for cell in code
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cdisc"
    }
    assert used <= set(cdisc.__all__)
    for node in (node for cell in code for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.ImportFrom)):
        for alias in node.names if node.module.startswith("cdisc") else ():
            assert named(f"{node.module}.{alias.name}") is not None
    kept = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in kept] == list(range(1, len(kept) + 1))
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    # Catches: a cell that fails. The time is for machines that do other work too: a cell takes seconds.
    for name in ("JAX_NUMPY_RANK_PROMOTION", "XLA_FLAGS"):  # of tests, and not of who reads them
        monkeypatch.delenv(name, raising=False)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    client = nbclient.NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=600,
        startup_timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
