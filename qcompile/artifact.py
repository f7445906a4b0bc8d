"""Artifact: a compiled model as a folder that is either complete or not there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from qcompile import backends
from qcompile.artifact_keys import is_signature
from qcompile.artifact_stage import behind_link, replaced
from qcompile.chat import Chat
from qcompile.errors import (
    ArtifactError,
    InputError,
    KeyFileError,
    ModelError,
    QCompileError,
    RecipeError,
    SignatureError,
    UnsafeModelError,
    first_line,
)
from qcompile.frontend import external_data
from qcompile.manifest import FILES, REPORT, SIGNATURE, Manifest, check_native
from qcompile.plain_files import check_plain
from qcompile.recipe import Recipe
from qcompile.report import Report
from qcompile.sealed_json import sealed, unsealed
from qcompile.session import Feed, Session
from qcompile.text_tokenizer import TOKENIZER

_REPLACED_WHILE_READ = 100
"""How often an artifact is read again because another process replaced it meanwhile."""


@dataclasses.dataclass
class Artifact:
    """A compiled model in its folder.

    Attributes:
        path: the folder. Without an `output` it is a temporary one that lives as long as this object.
        manifest: what the folder holds and what made it.
        report: what was quantized, what it cost and what it won.
        trusted: whether its machine code may be run, where it has some: this process made it, or `load` was told so.
    """

    path: Path
    manifest: Manifest = dataclasses.field(repr=False)
    report: Report = dataclasses.field(repr=False)
    trusted: bool = dataclasses.field(default=False, compare=False)
    _session: Session | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def model_path(self) -> Path:
        """The file that the runtime loads, with or without qcompile."""
        return self.path / self.manifest.model_file

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self.manifest.backend

    @property
    def recipe(self) -> Recipe:
        """The recipe that made it; raises RecipeError when this version of qcompile does not know its passes."""
        return Recipe.from_data(self.manifest.recipe)

    def open_session(self, *, threads: int | None = None) -> Session:
        """Load the model in its runtime; `threads` is left to the runtime when None.

        What was compiled of it ahead of time is loaded in its place, where it is `trusted`.
        """
        engine, package = backends.get(self.backend), self.manifest.package if self.trusted else None
        return backends.open_written(engine, self.path, self.manifest.model_file, package, threads=threads)

    @property
    def talks(self) -> bool:
        """Whether it is a language model with a tokenizer, compiled to "genai": see `open_chat`."""
        return TOKENIZER in self.manifest.files

    def open_chat(self, *, threads: int | None = None) -> Chat:
        """Load a language model in its runtime's library for generation, to talk to it.

        Raises:
            ArtifactError: it was compiled to a model, not to "genai".
            MissingDependencyError: the library (extra `genai`) is not installed.
        """
        if not self.talks:
            mend = "Compile it again, with output_format='genai', from a Hugging Face folder or a GGUF file"
            raise ArtifactError(str(self.path), "it is no language model with a tokenizer", mend)
        return backends.get(self.backend).open_chat(self.path, threads=threads)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array. The first run loads the model.

        Raises:
            InputError: an input is missing, unknown, or has another type or shape than the model's.
            ModelError: an output has a type that numpy does not have, such as bfloat16.
        """
        for port in self.manifest.outputs:
            check_native(port.name, np.dtype(port.dtype))
        if self._session is None:
            self._session = self.open_session()
        return self._session.run(feed)

    def __call__(self, /, *arrays: Any, **feed: Any) -> dict[str, np.ndarray]:
        """Run the model on arrays given by the names of its inputs, or on the one array of its only input; see `run`.

        Raises:
            InputError: as `run`; or there are arrays without a name where the model has other than one input.
        """
        names = [port.name for port in self.manifest.inputs]
        if not arrays:
            return self.run(feed)
        if len(arrays) == len(names) == 1 and not feed:
            return self.run({names[0]: arrays[0]})
        subject = "1 array without a name" if len(arrays) == 1 else f"{len(arrays)} arrays without a name"
        mend = f"Call artifact({', '.join(f'{name}=...' for name in names)}), or artifact.run({{name: array}})"
        raise InputError(subject, f"the inputs of the model are {', '.join(names) or 'none'}", mend)


def load(path: str | Path, *, public_key: str | Path | None = None, trust_input: bool = False) -> Artifact:
    """Open the artifact of a folder after comparing every file in it with the manifest.

    A page `report.html` may lie in the folder too and is not looked at. Where another process replaces the artifact
    meanwhile, it is the one before or the one after. The fingerprints of the manifest and of the report tell of damage;
    they do not tell of somebody who changed a file and computed them again: a signature does, see
    `qcompile.artifact_signature.sign`.

    Args:
        path: the folder.
        public_key: a PEM file; whoever has its other half must have signed the manifest. None: whoever wrote it.
        trust_input: run what was compiled ahead of time (`aot=True`), if there is such: it is machine code, and can do
            whatever you can. Otherwise nothing in the folder is code.

    Raises:
        ArtifactError: the folder is not an artifact, or a file of it is missing, changed, a link, or too many.
        SignatureError: there is no signature, or it is not of this manifest and key; KeyFileError, one of them: the key
            cannot be read.
        UnsafeModelError: the ONNX file keeps data outside the folder.
        MissingDependencyError: there is a `public_key`, and cryptography (extra `sign`) is not installed.
        RecipeError: `trust_input` is neither True nor False.
    """
    if not isinstance(trust_input, bool):
        raise RecipeError("trust_input", f"it is {trust_input!r}", "Give True or False")
    folder = absolute(path)
    for _ in range(_REPLACED_WHILE_READ):
        before = _identity(folder)
        try:
            artifact = _load(folder, None if public_key is None else _key(public_key), trust_input)
        except QCompileError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return artifact
    reason = f"it was replaced {_REPLACED_WHILE_READ} times while it was read"
    raise ArtifactError(str(folder), reason, "Load it when no process writes it")


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another one that has taken its name; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns  # both: the number of a folder that was removed is given out again


def _load(folder: Path, public_key: Path | None, trusted: bool) -> Artifact:
    aside = replaced(behind_link(folder))
    if aside.exists() and not folder.exists():
        reason = f"whoever replaced it was stopped; the artifact that was there is now {aside}"
        raise ArtifactError(str(folder), reason, "Move it back, or write the artifact again")
    manifest = Manifest.read(folder)
    if public_key is not None:
        _check_signature(folder / SIGNATURE, manifest, public_key)
    try:
        manifest.check_files(folder)
        _check_model(folder / manifest.model_file)
    except OSError as error:
        raise ArtifactError(str(folder), f"it cannot be read: {error}", "Give a folder with rights") from error
    return Artifact(folder, manifest, _read_report(folder / REPORT, manifest), trusted)


def _key(path: str | Path) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise KeyFileError("public_key", f"it is a {type(path).__name__}", "Give the path of a PEM file")
    return Path(path)


def _check_signature(path: Path, manifest: Manifest, public_key: Path) -> None:
    try:
        check_plain(path)
        signature = path.read_bytes()
    except FileNotFoundError as error:
        raise SignatureError(str(path), "nobody signed it", "Sign it with qcompile sign, or do not use it") from error
    except OSError as error:
        raise SignatureError(str(path), f"it cannot be read: {error}", "Do not use what nobody signed") from error
    if not is_signature(signature, manifest.to_json(), public_key):
        reason = f"it is not a signature of this manifest by the owner of {public_key}"
        raise SignatureError(str(path), reason, "Do not use this artifact")


def _check_model(model_path: Path) -> None:
    """Check where an ONNX file keeps its data; what it names and the manifest does not list is in no folder."""
    if not model_path.name.endswith(".onnx"):
        return
    try:
        model = onnx.load(model_path, load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(str(model_path), f"it is not an ONNX file: {error}", "Compile the model again") from error
    try:
        external_data.check_proto(model, model_path.parent)
    except UnsafeModelError:
        raise
    except ModelError as error:
        raise ArtifactError(str(model_path), f"{error.subject} {error.reason}", "Compile the model again") from error


def report_json(report: Report, manifest: Manifest) -> bytes:
    """Return the content of report.json: the report, whose it is, and what that consists of."""
    return sealed({"artifact": manifest.fingerprint, FILES: sorted(manifest.files), **report.to_dict()})


def _read_report(path: Path, manifest: Manifest) -> Report:
    mend = "Copy the whole folder again, or compile again"
    if not path.is_file():  # a pipe would be waited for
        raise ArtifactError(str(path), "there is no such file", mend)
    try:
        content = path.read_bytes()
        data = unsealed(content)
        intact = content == sealed(data)
        owner = data.pop("artifact")
        data.pop(FILES, None)  # what counts is in the manifest
        report = Report.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(str(path), f"it cannot be read: {first_line(error)}", mend) from error
    if not intact:
        raise ArtifactError(str(path), "it was changed: its fingerprint does not fit", mend)
    if owner != manifest.fingerprint:
        raise ArtifactError(str(path), "it is the report of another artifact", mend)
    return report


def absolute(path: str | Path) -> Path:
    """Return the absolute path of a folder.

    Raises:
        ArtifactError: it is no path, empty, that of a root, or one that nothing can have: too long, a link to itself, a
            name that is not UTF-8, which runtimes take none but.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArtifactError(f"folder {path!r}", f"it is a {type(path).__name__}", "Give the path of a folder")
    if not os.fspath(path):
        raise ArtifactError("folder ''", "the path is empty", "Give the path of a folder")
    found = Path(path).absolute()
    if not found.name:
        raise ArtifactError(f"folder {found}", "it is the root of a file system", "Give the path of a folder in it")
    try:
        str(found).encode("utf-8")
        found.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever reads or writes there says so
    except (OSError, ValueError) as error:
        raise ArtifactError(f"folder {str(path)!r}", f"nothing can be there: {error}", "Give another path") from error
    return found
