"""What torch and Triton are on this machine: installed, and with which device."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
import sys
from typing import TYPE_CHECKING

from qcompile.errors import MissingDependencyError, UnsupportedError, raise_interrupt

if TYPE_CHECKING:
    import torch

NO_CARD = "there is no CUDA device here"
_COMPILERS = ("g++", "clang++", "c++")
_LOG = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise MissingDependencyError where torch or Triton cannot be imported."""
    for package in ("torch", "triton"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise_interrupt(error)
            reason = f"the package {package} cannot be imported: {error}"
            mend = "Install it: pip install 'qcompile[triton]'"
            raise MissingDependencyError("backend 'triton'", reason, mend) from error


def check_compiler() -> None:
    """Raise MissingDependencyError without a compiler of C++, UnsupportedError on Windows: machine code needs them."""
    if sys.platform == "win32":
        raise UnsupportedError("aot=True", "torch's AOTInductor is not used on Windows", "Compile on Linux")
    if not any(map(shutil.which, _COMPILERS)):
        reason = f"AOTInductor needs a compiler of C++, and none of {', '.join(_COMPILERS)} is here"
        raise MissingDependencyError("aot=True", reason, "Install one, or leave aot out")


def device() -> str:
    """The device that models run on, as torch calls it."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def described() -> dict[str, str]:
    """The device in words, and the version of torch."""
    import torch

    if device() == "cpu":
        return {"device": f"{NO_CARD}: the reference runs on the processor", "torch": torch.__version__}
    major, minor = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    return {"device": name, "torch": torch.__version__}


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether kernels run on a tensor: on a card, and where somebody wants them in Triton's interpreter."""
    return tensor.is_cuda or _interpreted()


def has_kernels() -> bool:
    """Whether kernels run on the tensors of a model."""
    return device() == "cuda" or _interpreted()


def _interpreted() -> bool:
    """Whether to run kernels in Triton's interpreter, which takes a thousand times as long as torch on the processor.

    For QCOMPILE_INTERPRET_KERNELS=1, beside the TRITON_INTERPRET=1 that Triton reads when it is first imported.
    """
    return os.environ.get("QCOMPILE_INTERPRET_KERNELS") == os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def say_once_without_card() -> None:
    """Tell whoever runs an artifact on the processor, once in a process."""
    if device() == "cpu":
        _LOG.warning("%s: what was compiled for triton runs on the processor, by torch, slowly", NO_CARD)
