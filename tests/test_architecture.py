"""The architecture is a failing test: imports, sizes, docstrings, and what must not be in the files.

The arrows between the packages are import-linter contracts (pyproject.toml, run by `make check`).
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shim", "budget", "backends", "traces", "harness")
MAX_FUNCTION_LINES = 50
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders: str) -> dict[Path, ast.Module]:
    """The parsed files of some folders of the repository."""
    files = (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))
    return {file.relative_to(ROOT): parsed(file) for file in files}


@cache
def parsed(file: Path) -> ast.Module:
    """A file, parsed once for all tests, which change nothing in it."""
    return ast.parse(file.read_text("utf-8"))


@pytest.fixture(autouse=True, scope="module")
def trees() -> Iterator[None]:
    """They are dropped afterwards: so many objects would slow every later garbage collection."""
    yield
    parsed.cache_clear()
    functions.cache_clear()


def module_name(file: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def packages_of(name: str) -> Iterator[str]:
    """The packages around a module, which are imported before it."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def at_run_time(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module, without blocks that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from at_run_time(node)


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names an import statement mentions, as modules and as members."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def functions(tree: ast.Module) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]:
    """Every function of a module, nested ones as well."""
    return tuple(node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def test_no_function_imports_a_package_of_ours() -> None:
    """An import inside a function hides a cycle; lazy imports are for heavy third-party packages."""
    hidden = [
        f"{file}:{node.lineno} {name}"
        for file, tree in sources(*PACKAGES).items()
        for function in functions(tree)
        for node in at_run_time(function)
        for name in imported(node)
        if name.partition(".")[0] in PACKAGES
    ]
    assert hidden == []


def test_imports_have_no_cycle() -> None:
    """Modules can be understood, and tested, from the leaves up."""
    trees = sources(*PACKAGES)
    modules = {module_name(file): tree for file, tree in trees.items()}
    graph = {
        name: {
            target
            for node in at_run_time(tree)
            for found in imported(node)
            for target in (found, *packages_of(found))
            if target in modules and target != name and not name.startswith(f"{target}.")
        }
        for name, tree in modules.items()
    }
    assert len(graph) > len(PACKAGES)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_functions_fit_on_a_screen() -> None:
    """No function, of tests and tools neither, is longer than 50 lines."""
    folders = (*PACKAGES, "tools", "bench", "examples", "tests")
    long = [
        f"{file}:{function.lineno} {function.name}: {lines} lines"
        for file, tree in sources(*folders).items()
        for function in functions(tree)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_test_says_which_behaviour_it_protects() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{file}:{function.lineno} {function.name}"
        for file, tree in sources("tests").items()
        for function in functions(tree)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert silent == []


def test_every_package_says_what_it_is_for() -> None:
    """Each `__init__.py` starts with a docstring and defines nothing."""
    for file, tree in sources(*PACKAGES).items():
        if file.name == "__init__.py":
            assert ast.get_docstring(tree), f"{file} has no docstring"
            assert not functions(tree), f"{file} defines functions"


def test_names_of_test_files_are_unique() -> None:
    """In a folder that is no package, two files of one name would be taken for one module."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def project_files() -> list[Path]:
    """The files of the project, as git has them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_registry_address_and_no_path_of_one_machine_is_in_the_project() -> None:
    """Where packages come from and where a checkout lies is not the project's business."""
    forbidden = re.compile(
        r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)"
        r"|(?<![\w.])/(?:root|work|home/\w+|opt/pypi)/|--(?:extra-)?index-url"
    )  # fmt: skip
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in project_files()
        if file.name not in ("LICENSE", Path(__file__).name)
        for match in [forbidden.search(file.read_text("utf-8", errors="replace"))]
        if match
    ]
    assert found == []


def test_constraints_are_exact_versions_in_order() -> None:
    """Every line of constraints.txt is `name==version`: no addresses, no hashes, no ranges."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
    assert pins == sorted(pins, key=str.upper)
    names = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    wanted = re.findall(r'^    "([A-Za-z0-9._-]+)>=', project, re.MULTILINE)
    assert {name.lower() for name in wanted} <= names


ASKED_IN_ONE_PLACE = {
    r"/proc/\{|\"/proc\"|import psutil": ("backends/machine/processes.py",),
    r"import pynvml": ("backends/machine/nvml.py",),
    r"subprocess\.(run|Popen)\(|create_subprocess": (
        "backends/engine_process/tree_guard.py",
        "backends/engine_process/process.py",
        "backends/machine/children.py",
        "harness/demo/memory_samples.py",
        "shim/wire/launch.py",
        "traces/chrome/sql.py",
    ),
    r"HTTP/1\.1": (
        "backends/llama/binding/http_door.py",
        "backends/machine/unix_http.py",
        "backends/scripted.py",
    ),
}
"""What the operating system is asked in few modules only: a pattern, and where it may stand.

A keeper, an engine, its guard and the demo's sampler are started in ways of their own, and so is the
engine of `trace sql`, because `traces` imports nothing of `backends`; all else is a child that is asked or
serves.
"""


@pytest.mark.parametrize("pattern", ASKED_IN_ONE_PLACE)
def test_the_system_is_asked_in_one_place(pattern: str) -> None:
    """Figures of processes and of GPUs, programs and requests over sockets have one way each."""
    places = {
        file.as_posix()
        for file in sources(*PACKAGES)
        if re.search(pattern, (ROOT / file).read_text("utf-8").replace("/proc/self/fd/{", ""))
    }
    assert places == set(ASKED_IN_ONE_PLACE[pattern])


def test_no_wait_loses_its_cancellation() -> None:
    """Before Python 3.12 `asyncio.wait_for` drops one that comes as it ends; `asyncio.timeout` does not."""
    files = [file for file in sources(*PACKAGES) if "wait_for(" in (ROOT / file).read_text("utf-8")]
    assert files == []
