"""The house rules that a machine can check: layers, packages, public names, light imports, documents that are true."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest

import lmcleaner
from lmcleaner.formats.documents import load_schema

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"formats": "lmcleaner.formats", "lmcleaner": "lmcleaner", "cli": "lmcleaner.cli"}
# The scripts beside the golden logs make them; they are no part of the package.
SOURCES = sorted(
    file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "golden" not in file.relative_to(ROOT).parts
)


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_lower_layers_never_import_higher_ones(file: Path) -> None:
    layer = file.relative_to(ROOT).parts[0]
    forbidden = {"formats": r"torch|transformers|lmcleaner(?!\.formats)", "lmcleaner": r"lmcleaner\.cli|typer|rich"}
    pattern = re.compile(rf"({forbidden.get(layer, 'nothing')})(\.|$)")
    assert not {name for name in _imports(file) if pattern.match(name)}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_holds_one_idea_and_its_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            documented = ast.get_docstring(node) is not None
            first = node.body[0].end_lineno if documented else node.lineno
            assert first is not None
            assert node.end_lineno - first <= 45, f"{node.name}: {node.end_lineno - first} lines"


def test_every_folder_with_code_is_a_declared_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(declared) == sorted(found)
    without = {str(file.parent) for file in SOURCES if not (file.parent / "__init__.py").is_file()}
    assert not without


def test_public_names_are_sorted_and_all_load() -> None:
    assert lmcleaner.__all__ == sorted(lmcleaner.__all__)
    for name in lmcleaner.__all__:
        assert getattr(lmcleaner, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lmcleaner.nothing


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    script = "import sys, lmcleaner; assert not {'torch', 'transformers', 'zarr', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["manifest", "commit", "ledger", "audit"])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema(f"{name}.schema.json"))


def test_the_file_tree_of_the_readme_names_every_folder_and_module() -> None:
    readme = (ROOT / "README.md").read_text()
    for file in SOURCES:
        if file.name != "__init__.py":
            assert re.search(rf"\b{re.escape(file.name)}\b", readme), file


def test_relative_links_in_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "formats").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_wheel_holds_every_module_schema_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("lmcleaner-*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(Path(*package.split("."), file.relative_to(ROOT / folder)))
        for folder, package in FOLDERS.items()
        for suffix in ("*.py", "*.schema.json", "*.css", "py.typed")
        for file in (ROOT / folder).rglob(suffix)
        if "golden" not in file.relative_to(ROOT).parts
    }
    assert names == expected


def test_the_command_line_reference_is_that_of_the_commands() -> None:
    """`make docs` writes it anew."""
    command = [sys.executable, "-m", "typer", "lmcleaner.cli.main", "utils", "docs", "--name", "lmcleaner"]
    shown = subprocess.run([*command, "--title", "Command line"], check=True, capture_output=True, text=True, cwd="/")
    assert shown.stdout.strip() == (ROOT / "docs" / "cli.md").read_text().strip()
