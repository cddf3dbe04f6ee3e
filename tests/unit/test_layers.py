"""Imports, `cimport`s included, point only downwards through the layers, and each layer does without what it must."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.lint

PACKAGE = Path(__file__).parents[2] / "src" / "bucatini"
LAYERS = (
    "cli",
    "bench",
    "runtime",
    "guest",
    "host",
    "datapath",
    "services",
    "plan",
    "wire",
    "lean",
    "errors",
)  # from the top
SOURCES = sorted(path for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi") for path in PACKAGE.rglob(pattern))

# What would read a clock, a descriptor or the environment, or write to a log.
IMPURE = {
    "time",
    "datetime",
    "os",
    "io",
    "socket",
    "select",
    "selectors",
    "random",
    "secrets",
    "logging",
    "sys",
    "threading",
}
ALLOWED_OF_IMPURE = {"socket": {"AF_INET", "AF_INET6", "inet_ntop", "inet_pton"}}  # conversions, no descriptor
STANDS_FOR = {"bucatini.lean.sockets": "socket"}

CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<package>[\w.]+)\s+c?import\s+(?P<names>\([^)]*\)|[^\n#]+)|c?import\s+(?P<modules>[^\n#]+))",
    re.MULTILINE,
)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Everything that a source imports, anywhere in it: (module, name or None)."""
    text = path.read_text()
    # A relative import of a package's __init__ is relative to itself.
    package = module_of(path).split(".") if path.stem == "__init__" else module_of(path).split(".")[:-1]
    if path.suffix in {".py", ".pyi"}:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield module, alias.name
        return
    for match in CYTHON_IMPORT.finditer(re.sub(r'""".*?"""', "", text, flags=re.DOTALL)):
        if match["package"]:
            dots = len(match["package"]) - len(match["package"].lstrip("."))
            base = package[: len(package) - dots + 1] if dots else []
            module = ".".join([*base, *filter(None, [match["package"].lstrip(".")])])
            for name in match["names"].strip("()").replace("\n", " ").split(","):
                if name.strip():
                    yield module, name.split(" as ")[0].strip()
        else:
            for module in match["modules"].split(","):
                yield module.split(" as ")[0].strip(), None


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "bucatini" and parts[1] in LAYERS else None


def test_every_module_is_in_a_layer() -> None:
    strays = [module_of(path) for path in SOURCES if layer(module_of(path)) is None and module_of(path) != "bucatini"]
    assert not strays


def test_imports_point_downwards() -> None:
    upward = []
    for path in SOURCES:
        here = layer(module_of(path))
        if here is None:
            continue
        for module, name in imports(path):
            # "from bucatini import wire" names the layer in the second place.
            there = layer(module) or (layer(f"{module}.{name}") if name else None)
            if there is not None and LAYERS.index(there) < LAYERS.index(here):
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not upward


def test_errors_and_the_package_itself_import_nothing_of_ours() -> None:
    for name in ("errors.py", "__init__.py"):
        assert not [module for module, _ in imports(PACKAGE / name) if module.split(".")[0] == "bucatini"]


def test_formats_and_services_have_no_clock_no_descriptor_and_no_log() -> None:
    impure = []
    for path in SOURCES:
        if layer(module_of(path)) in {"wire", "services"}:
            for module, name in imports(path):
                # "from bucatini.lean import sockets" names the module in the second place.
                module = STANDS_FOR.get(module) or STANDS_FOR.get(f"{module}.{name}", module)
                if module.split(".")[0] in IMPURE and name not in ALLOWED_OF_IMPURE.get(module, set()):
                    impure.append(f"{path.relative_to(PACKAGE)} imports {module}" + (f".{name}" if name else ""))
    assert not impure


# Programs of their own: the benchmark runs them and reads what they print
PROGRAMS = {"bucatini.bench.path", "bucatini.bench.traffic"}


def test_only_the_command_line_prints() -> None:
    printing = []
    for path in SOURCES:
        if path.suffix == ".py" and layer(module_of(path)) != "cli" and module_of(path) not in PROGRAMS:
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            named = [(node.lineno, node.func.id) for node in calls if isinstance(node.func, ast.Name)]
            printing += [f"{path.relative_to(PACKAGE)}:{line}" for line, name in named if name in {"print", "input"}]
    assert not printing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from bucatini.wire cimport a, b as c\n", [("bucatini.wire", "a"), ("bucatini.wire", "b")]),
        (
            "from .flow cimport (\n    Flow,\n    FLOW_TCP,\n)\n",
            [("bucatini.datapath.flow", "Flow"), ("bucatini.datapath.flow", "FLOW_TCP")],
        ),
        ("cimport bucatini.cli.pasta as pasta, cython\n", [("bucatini.cli.pasta", None), ("cython", None)]),
        ('"""from x import y"""\ncdef int f() noexcept nogil:\n    import os\n', [("os", None)]),
    ],
)
def test_cython_imports_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: list[tuple[str, str | None]]
) -> None:
    path = tmp_path / "bucatini" / "datapath" / "example.pyx"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "bucatini")
    assert list(imports(path)) == found
