"""Writes an artifact: the folder holds all of it, or is as it was before."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import onnx_ir as ir

from qcompile.artifact import Artifact, absolute, report_json
from qcompile.artifact_exchange import bring_to_disk, put_in_place, sync
from qcompile.artifact_stage import behind_link, keep_others_out, replaced, stage_beside
from qcompile.backends import Lowered
from qcompile.disk_room import is_full
from qcompile.errors import ArtifactError
from qcompile.manifest import (
    MANIFEST,
    REPORT,
    UNLISTED,
    FileEntry,
    Manifest,
    files_to_replace,
    ports,
    relative_files,
    versions,
)
from qcompile.recipe import Recipe
from qcompile.report import Report

_P = ParamSpec("_P")
_R = TypeVar("_R")


def sole_writer(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate what writes an artifact to its keyword argument `output`: while it works, others are refused there.

    An artifact may be replaced, damaged or not; files that are not of an artifact are never deleted.

    Raises:
        ArtifactError: before the work, where another process is at work there, nothing can be made there, or what is
            there must not be replaced: among it the current folder, and those that it is in.
    """

    @functools.wraps(function)
    def alone(*arguments: _P.args, **settings: _P.kwargs) -> _R:
        output: Any = settings.get("output")
        if output is None:
            return function(*arguments, **settings)
        path = absolute(output)
        with contextlib.ExitStack() as stack:
            with _failures_of(path):
                _check_not_entered(path)
                stack.enter_context(keep_others_out(behind_link(path)))
                _check_replaceable(path)
            return function(*arguments, **settings)

    return alone


def _check_not_entered(output: Path) -> None:
    """Refuse the current folder and those above it: a new one takes its name, and whoever is in it stays in the old."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed, and is not to be replaced
        return
    if output.exists() and any(map(output.samefile, (here, *here.parents))):
        reason = "it is the current folder, as an empty path is, or one above that: a new folder would take its name, "
        reason += "and whoever works there would stay in the old one"
        raise ArtifactError(str(output), reason, "Give a new folder in it, or one beside it")


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
    foreign = sorted(set(files) - files_to_replace(output) - UNLISTED)
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

    The files are made in a folder beside `output`, brought to the disk, the manifest last, and renamed into place. Of
    several processes that write to one folder, one at a time does: others fail, or come after it and replace it.

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
        report: becomes report.json, which the manifest does not list: measurements differ between runs.

    Raises:
        ArtifactError: `output` holds something else, cannot be written, has no room, is being written by another
            process, or `write` failed on another file.
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
            bits_per_weight=report.bits_per_weight or None,
            package=lowered.package,
        )
        (folder / REPORT).write_bytes(report_json(report, manifest))
        return manifest

    if output is None:
        return _temporary(fill, report)
    output = absolute(output)
    place = behind_link(output)
    with _failures_of(output), stage_beside(place) as stage:
        _check_replaceable(output)
        folder = stage / "new"
        folder.mkdir()
        manifest = fill(folder)
        bring_to_disk(folder)
        (folder / MANIFEST).write_bytes(manifest.to_json())  # last: with it the folder says that it is whole
        sync(folder / MANIFEST)
        sync(folder)
        put_in_place(folder, place, replaced(place))
    return Artifact(output, manifest, report, trusted=True)


def _temporary(fill: Callable[[Path], Manifest], report: Report) -> Artifact:
    folder = tempfile.mkdtemp(prefix="qcompile-")
    try:
        with _failures_of(Path(folder)):
            manifest = fill(Path(folder))
            (Path(folder) / MANIFEST).write_bytes(manifest.to_json())
            artifact = Artifact(Path(folder), manifest, report, trusted=True)
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
        if is_full(error) or (named is not None and named.is_relative_to(folder)):
            raise
        reason = f"no artifact was written, because the work on it failed: {error}"
        mend = "Keep the files of the model in place until compile returns"
        raise ArtifactError(str(named or folder), reason, mend) from error
