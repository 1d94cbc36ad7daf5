"""The notebooks as they lie in git: short, without outputs, defining nothing. `make notebooks` runs them."""

import ast
import json

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_they_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_the_package_and_holds_no_output(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and len(cells) <= 25
    for cell in code:
        assert not cell["outputs"] and cell["execution_count"] is None, "strip the outputs"
        tree = ast.parse("".join(cell["source"]))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in ast.walk(tree))
    told = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "checkpoint" in told, "one cell says how to point it at a real one"
