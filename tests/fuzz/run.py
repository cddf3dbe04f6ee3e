"""Runs one fuzz target under libFuzzer (atheris), or prints the inputs of a folder as its corpus is kept.

    run.py TARGET FOLDER [OPTION...]     FOLDER: the working corpus; OPTION: libFuzzer's (-runs=, -max_total_time=)
    run.py --blind TARGET ...            likewise, but Python's branches do not guide the search: ten times as fast
    run.py --keep TARGET FOLDER          what `corpus/TARGET.hex` is to contain

`make fuzz` calls it with the sanitizers' runtime preloaded and the modules built for them.
"""

import importlib
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import targets


def instrument(name: str) -> None:
    """Have the branches and comparisons of a module's functions guide the search."""
    import atheris

    module = importlib.import_module(f"bucatini.{name}")
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for member in vars(value).values() if isinstance(value, type) else (value,):
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__:
                function.__code__ = atheris.patch_code(function.__code__, trace_dataflow=False)


def fuzz(name: str, folder: Path, options: list[str], *, blind: bool) -> None:
    """Run libFuzzer; it ends the process."""
    import atheris

    target = targets.TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    merges = any(option.startswith("-merge") for option in options)
    for at, data in enumerate([] if merges else [*target.seeds(), *targets.read(name)]):
        (folder / f"kept-{at}").write_bytes(data)
    for module in () if blind else target.modules:
        instrument(module)
    if blind:
        options = ["-keep_seed=1", *options]  # what reached something once is what to begin with
    # To merge, libFuzzer runs what it takes for the program again, by a shell
    program = " ".join([sys.executable, "-s", *sys.argv[:3]])
    arguments = [program, str(folder), f"-max_len={target.size}", f"-artifact_prefix={folder}.found-"]
    atheris.Setup(
        [*arguments, "-timeout=10", "-rss_limit_mb=0", "-reload=0", "-print_final_stats=1", *options], target.run
    )
    atheris.Fuzz()


def keep(name: str, folder: Path) -> None:
    """Print the inputs in order, those with comments of the corpus as they stand there."""
    path = targets.CORPORA / f"{name}.hex"
    kept = path.read_text().splitlines() if path.exists() else []
    noted = [line for at, line in enumerate(kept) if line.startswith("#") or (at and kept[at - 1].startswith("#"))]
    others = {file.read_bytes().hex() for file in folder.iterdir()} - set(noted)
    print("\n".join([*noted, *sorted(others, key=lambda line: (len(line), line))]))


if __name__ == "__main__":
    if sys.argv[1] == "--keep":
        keep(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "--blind":
        fuzz(sys.argv[2], Path(sys.argv[3]), sys.argv[4:], blind=True)
    else:
        fuzz(sys.argv[1], Path(sys.argv[2]), sys.argv[3:], blind=False)
