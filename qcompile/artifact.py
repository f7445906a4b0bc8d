"""Artifact: a compiled model as a folder that is either complete or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcompile import backends
from qcompile.artifact_exchange import put_in_place
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, InputError
from qcompile.frontend import external_data
from qcompile.manifest import (
    MANIFEST,
    MEASUREMENTS,
    REPORT,
    FileEntry,
    Manifest,
    check_native,
    files_to_replace,
    ports,
    relative_files,
    versions,
)
from qcompile.recipe import Recipe
from qcompile.report import Report
from qcompile.session import Feed, Session

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass
class Artifact:
    """A compiled model in its folder.

    Attributes:
        path: the folder. Without an `output` it is a temporary one that lives as long as this object.
        manifest: what the folder holds and what made it.
        report: what was quantized, what it cost and what it won.
    """

    path: Path
    manifest: Manifest
    report: Report
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
        """Load the model in its runtime; `threads` is left to the runtime when None."""
        return backends.get(self.backend).open_artifact(self.model_path, threads=threads)

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


def load(path: str | Path) -> Artifact:
    """Open the artifact of a folder after comparing every file that its runtime reads with the manifest.

    Other files, such as a page that the user saved there, may lie in the folder. The manifest has no digest of the
    report, whose measurements differ from run to run: whether somebody edited it cannot be told.

    Raises:
        ArtifactError: the folder is not an artifact, or a file of it is missing, changed, outside the folder, or read
            by the model and not in the manifest.
        UnsafeModelError: the ONNX file keeps data outside the folder.
    """
    folder = _folder(path)
    manifest = Manifest.read(folder)
    try:
        manifest.check_files(folder)
        data_files = _data_files(folder / manifest.model_file)
    except OSError as error:
        raise ArtifactError(str(folder), f"it cannot be read: {error}", "Give a folder with rights") from error
    for path in sorted(data_files):
        if path.relative_to(folder).as_posix() not in manifest.files:
            reason = "the model keeps data in it, and the manifest does not list it"
            raise ArtifactError(str(path), reason, "Compile the model again")
    report = folder / REPORT
    try:
        return Artifact(folder, manifest, Report.from_dict(json.loads(report.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(str(report), f"it cannot be read: {error!r}", "Compile the model again") from error


def _data_files(model_path: Path) -> set[Path]:
    """Files that a runtime reads besides that of the model: an ONNX file names them, OpenVINO's has one of its name."""
    if not model_path.name.endswith(".onnx"):
        weights = model_path.with_suffix(".bin")
        return {weights} if weights.exists() else set()
    try:
        model = onnx.load(model_path, load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(str(model_path), f"it is not an ONNX file: {error}", "Compile the model again") from error
    return external_data.check_proto(model, model_path.parent)


def check_output(output: str | Path) -> None:
    """Raise ArtifactError when a folder cannot be written or must not be replaced: call it before the work starts.

    An artifact may be replaced, damaged or not; files that are not of an artifact are never deleted.
    """
    output = _folder(output)
    with _failures_of(output):
        _check_replaceable(output)
        above = next(parent for parent in output.parents if parent.exists())
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=above).cleanup()  # only trying it tells


def _folder(path: str | Path) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ArtifactError(f"folder {path!r}", f"it is a {type(path).__name__}", "Give the path of a folder")
    return Path(path).absolute()


def _check_replaceable(output: Path) -> None:
    if not output.exists() and not output.is_symlink():
        return
    mend = "Give a new or empty folder"
    if not output.is_dir():
        raise ArtifactError(str(output), "it exists and is not a folder", mend)
    files = relative_files(output)
    if not files and not any(output.iterdir()):
        return
    if MANIFEST not in files:
        raise ArtifactError(str(output), "the folder is not empty and holds no artifact", mend)
    foreign = sorted(set(files) - files_to_replace(output) - {MANIFEST, *MEASUREMENTS})
    if foreign:
        raise ArtifactError(str(output / foreign[0]), "the file is not part of the artifact to be replaced", mend)


def write_artifact(
    output: Path | None,
    write: Callable[[Path], Lowered],
    *,
    recipe: Recipe,
    backend: str,
    target: str | None,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    calibration: str | None,
    report: Report,
) -> Artifact:
    """Write an artifact so that the folder holds all of it or is as it was before.

    The files are made in a folder beside `output`, brought to the disk, and renamed into place.

    Args:
        output: the folder to make or, when it is an artifact, to replace; None for a temporary folder.
        write: writes the model files into an existing empty folder. What it raises is passed on, but for an OSError.
            It may also run the model there and complete `report`, which is written after it returns.
        recipe: goes into the manifest.
        backend: name of the backend that opens the result.
        target: goes into the manifest.
        inputs: graph inputs of the model.
        outputs: graph outputs of the model.
        calibration: digest of the calibration data.
        report: becomes report.json, which the manifest does not cover: measurements differ between runs.

    Raises:
        ArtifactError: `output` holds something else, cannot be written, or `write` failed on another file.
    """

    def fill(folder: Path) -> Manifest:
        with _failures_elsewhere(folder):
            lowered = write(folder)
        manifest = Manifest(
            recipe=recipe.to_data(),
            backend=backend,
            target=target,
            model_file=lowered.model_file,
            inputs=ports(inputs),
            outputs=ports(outputs),
            calibration=calibration,
            versions=versions(backend),
            files={name: FileEntry.of(folder / name) for name in relative_files(folder)},
        )
        (folder / REPORT).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    if output is None:
        return _temporary(fill, report)
    check_output(output)
    output = _folder(output)
    with _failures_of(output), _beside(output) as stage:
        folder = stage / "new"
        folder.mkdir()
        manifest = fill(folder)
        put_in_place(folder, output, stage / "old")
    return Artifact(output, manifest, report)


def _temporary(fill: Callable[[Path], Manifest], report: Report) -> Artifact:
    folder = tempfile.mkdtemp(prefix="qcompile-")
    try:
        with _failures_of(Path(folder)):
            artifact = Artifact(Path(folder), fill(Path(folder)), report)
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(artifact, shutil.rmtree, folder, ignore_errors=True)
    return artifact


@contextlib.contextmanager
def _failures_of(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            str(output), f"it cannot be written: {error}", "Give a folder with room and rights"
        ) from error


@contextlib.contextmanager
def _failures_elsewhere(folder: Path) -> Iterator[None]:
    """Name the file where what fails is neither the folder that is written nor the room for it."""
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno in _NO_ROOM or (named is not None and named.is_relative_to(folder)):
            raise
        reason = f"no artifact was written, because the work on it failed: {error}"
        mend = "Keep the files of the model in place until compile returns"
        raise ArtifactError(str(named or folder), reason, mend) from error


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Make a folder beside `output`; at the end remove it, and the parents made for it when `output` is not there."""
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not output.exists():
            for parent in made:
                parent.rmdir()
