"""The door for files of PyTorch, which are programs: unpickling one runs what its author wrote."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError, UnsafeModelError, first_line

SUFFIXES = (".pt", ".pt2", ".pth")

_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What unpickling raises on a file that is damaged, no pickle, or of classes that are not there."""


def is_torch_file(model: Any) -> bool:
    """Whether the object is a path that ends like a file of PyTorch."""
    return isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() in SUFFIXES


def read_torch_file(path: str | os.PathLike[str], *, trust: bool) -> Any:
    """Return the torch.nn.Module or torch.export.ExportedProgram in a file of torch.save or torch.export.save.

    Args:
        path: a .pt, .pth or .pt2 file.
        trust: the caller knows where the file comes from.

    Raises:
        UnsafeModelError: it is not trusted; then the file is not even opened.
        ModelError: the file cannot be read, or holds something else, such as weights without their module.
    """
    subject = str(path)
    if not trust:
        reason = "is a file of PyTorch, and reading one runs the code that is in it"
        raise UnsafeModelError(subject, reason, "Pass trust_input=True if you know where it comes from, or give ONNX")
    import torch
    import torch.export

    try:
        found = torch.export.load(path) if _is_program(path) else torch.load(path, "cpu", weights_only=False)
    except _BROKEN as error:
        reason = f"torch cannot read it ({first_line(error)})"
        raise ModelError(subject, reason, "Save it with torch.save(module) or torch.export.save(program)") from error
    if isinstance(found, torch.jit.ScriptModule) or not isinstance(
        found, (torch.nn.Module, torch.export.ExportedProgram)
    ):
        reason = f"it holds a {type(found).__name__}, and no module that can be exported"
        raise ModelError(subject, reason, "Save the whole module, or the program that torch.export.export returns")
    return found


def _is_program(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".pt2"
