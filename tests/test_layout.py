"""Who may import whom, and the shape of the repository."""

import ast
import re

import pytest

from tests.conftest import ROOT

ALLOWED = {"dpa": {"dpa"}, "analysis": {"analysis", "dpa"}, "benchmarks": {"benchmarks", "analysis", "dpa"}}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_who_imports_whom(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = {name for name in imports(path) if name in {*ALLOWED, "tests"}}
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_top_level_folders():
    for name in ("dpa", "analysis", "benchmarks", "notebooks", "results", "tests"):
        assert (ROOT / name).is_dir()


def test_every_module_says_what_it_is_for():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), (
                f"{path} has no docstring"
            )


def test_every_module_the_readme_names_is_there():
    """`python -m X` in README, CONTRIBUTING, Makefile and results/README.md names a module of ours."""
    named = set()
    for name in ("README.md", "CONTRIBUTING.md", "Makefile", "results/README.md", "notebooks/README.md"):
        named |= set(re.findall(r"python -m ((?:dpa|analysis|benchmarks)[\w.]*)", (ROOT / name).read_text()))
    assert len(named) >= 6
    for module in named:
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.is_file() and "__main__" in path.read_text(), module


def test_readme_has_no_hole():
    assert "@@" not in (ROOT / "README.md").read_text()


def test_readme_links_to_files_that_are_there():
    for name in ("README.md", "CONTRIBUTING.md", "results/README.md"):
        folder = (ROOT / name).parent
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            assert link.startswith("http") or (folder / link).is_file(), f"{name} links to {link}"
