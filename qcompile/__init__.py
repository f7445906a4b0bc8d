"""qcompile: a quantizing graph compiler for CPUs, edge boxes and single GPUs.

`compile` is the whole compiler; `rewrite` its passes only; `trace` its front doors; `load` opens an artifact, and
`verify` repeats its verification on the machine where it is; `export_gguf` writes a language model for llama.cpp.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from qcompile.errors import QCompileError

if TYPE_CHECKING:
    from qcompile.accuracy_budget import AccuracyBudget
    from qcompile.artifact import Artifact, load
    from qcompile.artifact_gguf_export import export_gguf
    from qcompile.calibration_data import Calibration
    from qcompile.compile import compile, rewrite, trace
    from qcompile.recipe import Recipe
    from qcompile.report import Report
    from qcompile.verification import verify

__version__ = "0.1.0"

__all__ = [
    "AccuracyBudget",
    "Artifact",
    "Calibration",
    "QCompileError",
    "Recipe",
    "Report",
    "compile",
    "export_gguf",
    "load",
    "rewrite",
    "trace",
    "verify",
]

_HOMES = {
    "AccuracyBudget": "qcompile.accuracy_budget",
    "Artifact": "qcompile.artifact",
    "Calibration": "qcompile.calibration_data",
    "Recipe": "qcompile.recipe",
    "Report": "qcompile.report",
    "compile": "qcompile.compile",
    "export_gguf": "qcompile.artifact_gguf_export",
    "load": "qcompile.artifact",
    "rewrite": "qcompile.compile",
    "trace": "qcompile.compile",
    "verify": "qcompile.verification",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import qcompile` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, imported or not, for those who complete them."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Package(types.ModuleType):
    """Keeps `compile` and `verify` functions: importing the submodules of these names would put modules there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, types.ModuleType):
            return  # __getattr__ finds the function
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
