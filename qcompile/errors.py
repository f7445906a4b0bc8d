"""Every failure of qcompile: what it concerns, why it happened and how to mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType


class QCompileError(Exception):
    """Base of every error that qcompile raises.

    Attributes:
        subject: the node, input, file or setting that the error concerns.
        reason: what is wrong with it.
        mend: what the user can do about it.
    """

    def __init__(self, subject: str, reason: str, mend: str) -> None:
        super().__init__(f"{subject}: {reason}. {mend}.")
        self.subject = subject
        self.reason = reason
        self.mend = mend

    def __reduce__(self) -> tuple[type[QCompileError], tuple[str, str, str]]:
        return type(self), (self.subject, self.reason, self.mend)


class ModelError(QCompileError):
    """The model cannot be read, exported or checked."""


class UnsafeModelError(ModelError):
    """The model reaches outside its own folder, is built to break its reader, or may run code."""


class InputError(QCompileError):
    """A feed does not fit the inputs of the model."""


class CalibrationError(QCompileError):
    """The calibration data cannot be used."""


class RecipeError(QCompileError):
    """The recipe, a pattern of `ignore` or `targets`, or an option is not valid."""


class UnsupportedError(QCompileError):
    """The backend or the target cannot run what the recipe asks for."""


class UnsupportedOperator(UnsupportedError):
    """A backend has no implementation of an operator, or of one of its attributes or types."""


class NothingMatchedError(QCompileError):
    """A pass that was asked for found nothing to work on."""


class VerificationError(QCompileError):
    """A pass or a runtime changed what the model computes."""


class ArtifactError(QCompileError):
    """The artifact folder cannot be written, or is not what its manifest says."""


class SignatureError(ArtifactError):
    """An artifact has no signature, or one that does not fit."""


class KeyFileError(SignatureError):
    """A file is not the key that signs or checks: it cannot be read, or is of another kind."""


class MissingDependencyError(QCompileError):
    """An optional dependency is needed and not installed."""


def raise_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt when it is among the causes of an error; call it before an error is translated.

    Libraries turn Ctrl-C into errors of their own: pybind11 makes an ImportError of it when it comes while a module is
    loaded, and exporters wrap that again.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__  # not __context__: users may call qcompile where they handle Ctrl-C


def first_line(error: BaseException) -> str:
    """First line with text of what was raised, without a full stop; its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


class UserCode(contextlib.AbstractContextManager[None]):
    """Inside runs code that the user wrote, and nothing else: whatever it raises becomes an error of qcompile.

    An error of qcompile's own passes as it is.

    Attributes:
        what: the code, in words.
        failure: returns the error for a reason.
    """

    def __init__(self, what: str, failure: Callable[[str], QCompileError]) -> None:
        self.what, self.failure = what, failure

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, QCompileError):
            raise_interrupt(error)
            message = str(error).rstrip(".") or "without a message"
            raise self.failure(f"{self.what} raised {type(error).__name__}: {message}") from error
