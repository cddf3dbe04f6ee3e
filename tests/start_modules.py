"""The modules that a start of `pasta` imports, and how to find out.

Whoever runs a container waits for these. A module is added to a list here only for a reason that is worth its
milliseconds (python -X importtime tells them), and never one of `DEAR`.
"""

import re

# What Python's own start has loaded already, and what comes with a .pth file of the development environment.
BARE = {"_distutils_hack", "apport_python_hook", "sitecustomize", "site"}

# From the standard library: names without underscore, without submodules.
PARSING = {"errno", "fcntl", "gc", "resource", "select", "struct"}
RUNNING = PARSING | {"ctypes", "types", "warnings", "zlib"}  # os.execvp imports warnings, for the command

# Those that are known to cost a start several milliseconds, and to creep in.
DEAR = {
    "argparse", "array", "ast", "asyncio", "collections", "concurrent", "contextlib", "dataclasses", "datetime",
    "decimal", "email", "enum", "functools", "gettext", "hashlib", "http", "importlib.metadata", "inspect", "ipaddress",
    "json", "locale", "logging", "multiprocessing", "pathlib", "platform", "random", "re", "secrets", "selectors",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "traceback", "typing", "urllib", "uuid",
}  # fmt: skip

IMPORT = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)


def imported(output: str) -> set[str]:
    """The modules named in the output of `python -X importtime`."""
    return set(IMPORT.findall(output))


def standard(modules: set[str]) -> set[str]:
    """The public names of other packages among `modules`, without submodules and private modules."""
    names = {module.partition(".")[0] for module in modules}
    return {name for name in names - BARE if not name.startswith("_") and name != "bucatini"}


def ours(modules: set[str]) -> set[str]:
    """Our modules among `modules`, packages left out."""
    own = {module for module in modules if module.startswith("bucatini.")}
    return {module for module in own if not any(other.startswith(f"{module}.") for other in own)}
