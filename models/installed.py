"""Where the files of an installed Python package lie, without importing the package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from qcompile.errors import MissingDependencyError


def package_folder(package: str, requirement: str) -> Path:
    """Return the folder of an installed package; does not run any of its code.

    Args:
        package: import name of a top-level package.
        requirement: what to give to pip, e.g. "magika==1.0.3" or "--no-deps magika==1.0.3".

    Raises:
        MissingDependencyError: when the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package, requirement)
    return Path(spec.submodule_search_locations[0])


def package_file(package: str, requirement: str, *parts: str) -> Path:
    """Return a file inside an installed package; raises MissingDependencyError when the package lacks it."""
    path = package_folder(package, requirement).joinpath(*parts)
    if not path.is_file():
        raise MissingDependencyError(
            f"package {package!r}",
            f"the installed version has no {'/'.join(parts)}",
            f"Install the tested version: pip install {requirement}",
        )
    return path


def import_optional(module: str, requirement: str) -> ModuleType:
    """Import an optional module; raises MissingDependencyError when it, and not something it needs, is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise _missing(module, requirement) from error


def _missing(package: str, requirement: str) -> MissingDependencyError:
    return MissingDependencyError(f"package {package!r}", "it is not installed", f"Run: pip install {requirement}")
