"""The examples in the docstrings of the algorithms: every public function has one, and it is true."""

import ast
import doctest
import importlib
import inspect
import io
import re

import numpy as np
import pytest
from commands import ROOT

PACKAGES = ("diffusion", "discovery", "evaluation", "learning", "networks")
PUBLIC = [
    (".".join(path.relative_to(ROOT).with_suffix("").parts), node.name)
    for package in PACKAGES
    for path in sorted((ROOT / "cdisc" / package).glob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]


@pytest.fixture(scope="module")
def shared():
    """The names that the examples share, as docs/api/examples.md makes them."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api" / "examples.md").read_text("utf-8"), re.DOTALL)
    names = {}
    with np.printoptions():  # which the block changes
        exec(block, names)
        yield {name: value for name, value in names.items() if not name.startswith("__")}


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_function_has_an_example_that_is_true(module, name, shared):
    # Catches: a function without one, an example of an older version, a shared name that hides what it is about.
    found = importlib.import_module(module)
    function = getattr(found, name)
    names = {**vars(found), **shared}
    assert names[name] is function
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", names, name, None, None)
    assert example.examples, f"{module}.{name} has no example in its docstring: write one, as docs/api/examples.md says"
    said = io.StringIO()
    assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.write).failed, said.getvalue()
