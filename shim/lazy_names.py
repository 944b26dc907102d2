"""What `shim/__init__.py` does: names that are imported when they are first used (PEP 562), and a check.

The check names the file that is in the way where another module has the name of a package of keepwarm.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib takes 5 ms to import


def lazy_names(
    package: str, homes: Mapping[str, str], *, distribution: str | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a package: imports a name from its home, and remembers it.

    Args:
        package: the package's own name.
        homes: names, parted by blanks, by the module that they are defined in.
        distribution: what `__version__` is the version of.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name == "__version__" and distribution is not None:
            # Its import takes longer than that of everything here, and few programs ask.
            value = import_module("importlib.metadata").version(distribution)
        elif name in home_of:
            value = getattr(import_module(home_of[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return find


def check_packages(*names: str) -> None:
    """Refuse a module that Python would import in place of a package of keepwarm. Imports none of them.

    Raises:
        ImportError: names the file or the folder, and what to do.
    """
    for name in names:
        found = _spec(name)
        places = list(found.submodule_search_locations or ()) if found is not None else []
        ours = os.path.join(HERE, name)  # noqa: PTH118
        if places[:1] == [ours] or (places and _same(places[0], ours)):
            continue
        other = next(iter(places), None) or (found.origin if found is not None else None)
        raise ImportError(
            f"keepwarm needs its own package {name!r}, and Python finds {other or 'none'} in its place. "
            "Rename that, or keep its folder off the beginning of sys.path (`python -P`).",
            name=name,
            path=other,
        )


def _spec(name: str) -> ModuleSpec | None:
    """What `import NAME` would import, or has imported."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__spec__", None)
    specs = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False
