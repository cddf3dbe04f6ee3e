"""What the module heads and ARCHITECTURE.md say about the code is true of it: the names they put in backticks exist."""

import ast
import builtins
import re
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.lint

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "bucatini"
SOURCES = sorted(path for pattern in ("*.py", "*.pyx", "*.pxd") for path in PACKAGE.rglob(pattern))
TREES = ("src", "tests", "tools", "docs")
LONGEST = 1000  # lines

BACKTICKS = re.compile(r"`([^`\n]+)`")
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")
WORD = re.compile(r"[A-Za-z_]\w*")
BAR = re.compile(r"(?<!\\)\|")


def head(path: Path) -> str:
    """The text at the head of a module: its docstring, or in a .pxd the comment."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    match = re.match(r'\s*(?:#[^\n]*\n|\s)*[ru]?"""(.*?)"""', text, re.DOTALL)
    comment = re.match(r"(?:\s*#[^\n]*\n)*", text)
    return (comment[0] if comment else "") + (match[1] if match else "")


@cache
def code_names() -> frozenset[str]:
    """Every identifier in the code of the package, without comments and docstrings, and the names of its modules."""
    names = set(dir(builtins)) | set(sys.stdlib_module_names) | {"bucatini"}
    for path in SOURCES:
        text = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text())
        names.update(WORD.findall(re.sub(r"#[^\n]*", "", text)))
        names.update(part for part in path.relative_to(PACKAGE).with_suffix("").parts)
    return frozenset(names)


def unknown(text: str) -> list[str]:
    """The words in backticks that look like names of the code and are none."""
    found = []
    for quoted in BACKTICKS.findall(text):
        # Command lines, paths, options and expressions are no symbols.
        if not NAME.fullmatch(quoted):
            continue
        parts = quoted.removesuffix("()").split(".")
        if parts[-1] in {"py", "pyx", "pxd", "md", "toml"}:
            continue
        # `_be` stands for the names that end so.
        if quoted.startswith("_") and any(name.endswith(quoted) for name in code_names()):
            continue
        if any(part and part not in code_names() for part in parts):
            found.append(quoted)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_in_a_module_head_exist(path: Path) -> None:
    assert not unknown(head(path))


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(PACKAGE)) for path in SOURCES if not head(path).strip() and path.read_text().strip()]
    assert not silent


def test_paths_in_the_code_map_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    paths = [
        quoted
        for quoted in BACKTICKS.findall(text)
        if "/" in quoted and re.fullmatch(r"[\w./-]+", quoted) and not quoted.startswith("/")
    ]
    assert paths
    missing = [
        path
        for path in paths
        if not (ROOT / path).exists() and not (PACKAGE / path).exists() and not (ROOT / "src" / path).exists()
    ]
    assert not missing


def test_every_module_is_in_the_code_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("## Code map")[2].partition("## The data path")[0]
    paths = {path for path in SOURCES if not path.name.startswith("__")}
    modules = {str(path.relative_to(PACKAGE)) for path in paths if path.with_suffix(".pyx") not in paths - {path}}
    assert modules == {name for name in BACKTICKS.findall(text) if re.fullmatch(r"(\w+/)?\w+\.(py|pyx|pxd)", name)}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = []
    for path in (path for tree in TREES for path in (ROOT / tree).rglob("*")):
        if (
            path.suffix in {".py", ".pyx", ".pxd", ".pyi", ".md", ""}
            and path.is_file()
            and b"\0" not in (data := path.read_bytes())
        ):
            lines = data.count(b"\n")
            if lines > LONGEST:
                long.append(f"{path.relative_to(ROOT)}: {lines} lines")
    assert not long


def test_the_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    wrong = []
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        cells = 0
        for number, line in enumerate(path.read_text().splitlines(), 1):
            before, cells = cells, len(BAR.findall(line)) if line.startswith("|") else 0
            if before and cells and before != cells:
                wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert not wrong


def test_a_name_that_does_not_exist_is_found() -> None:
    assert unknown("`BucatiniError` and `no_such_thing_anywhere`, `pasta --help`") == ["no_such_thing_anywhere"]
