"""The package openvino, an extra of qcompile: imported when it is needed."""

from __future__ import annotations

import functools
from typing import Any

from qcompile.errors import MissingDependencyError, raise_interrupt


@functools.cache
def openvino() -> Any:
    """Return the package `openvino`; raises MissingDependencyError when it is not installed."""
    try:
        import openvino as package
    except ImportError as error:
        raise_interrupt(error)
        reason = f"the package openvino cannot be imported: {error}"
        raise MissingDependencyError(
            "backend 'openvino'", reason, "Install it: pip install 'qcompile[openvino]'"
        ) from error
    return package


@functools.cache
def opset() -> Any:
    """Return the factory functions of OpenVINO's operators."""
    openvino()
    from openvino import opset13

    return opset13


@functools.cache
def core() -> Any:
    """Return the one Core of this process; creating it loads the plugins."""
    return openvino().Core()


@functools.cache
def runtime_errors() -> tuple[type[Exception], ...]:
    """Every exception that OpenVINO raises for a model; they have no common base of their own."""
    openvino()
    from openvino import frontend

    return (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )
