"""The manifest of an artifact: what is in the folder, what made it, and whether the files are what was written."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.artifact_mistaken import no_artifact
from qcompile.errors import ArtifactError, ModelError
from qcompile.plain_files import check_plain
from qcompile.sealed_json import fingerprint, sealed, unsealed

MANIFEST = "manifest.json"
REPORT = "report.json"
SIGNATURE = "manifest.json.sig"
FORMAT = "qcompile artifact"
FORMAT_VERSION = 2
PAGE = "report.html"
UNLISTED = frozenset({MANIFEST, SIGNATURE, REPORT, PAGE})
"""Files of an artifact that the manifest does not list: itself, what comes after it, and measurements, which differ
from run to run. The page is there when the user saves it there."""

FILES = "files"
"""Entry of the report that names the files of the manifest, should that be damaged."""


class DamagedManifestError(ArtifactError):
    """The manifest of an artifact is not whole, or was made by another version."""


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of the model.

    Attributes:
        name: of the value.
        dtype: its numpy name, such as "int64"; "object" for strings.
        shape: numbers, names of free dimensions, None for nameless ones; None when the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """Return the port of a graph input or output."""
        shape = value.shape
        dimensions = None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)
        return cls(value.name or "", str(value.dtype.numpy()) if value.dtype is not None else "object", dimensions)


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Digest and size of one file.

    Attributes:
        sha256: hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Read the file."""
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says; equal inputs give equal bytes, so it holds no time and no measurement.

    Attributes:
        recipe: data of the recipe (`Recipe.from_data`).
        backend: name of the backend.
        target: processor that the artifact was made for, or None.
        model_file: the file to load.
        inputs: of the model.
        outputs: of the model.
        calibration: digest of the calibration data, or None without.
        versions: of qcompile, onnx and the runtime.
        files: path inside the folder, with forward slashes -> entry.
        bits_per_weight: see `qcompile.bits_per_weight`; None where no weight is quantized, and before there was this.
        package: file of machine code, compiled ahead of time, that stands for the model file; None: there is none.
    """

    recipe: Mapping[str, Any]
    backend: str
    target: str | None
    model_file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration: str | None
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    bits_per_weight: Mapping[str, float] | None = None
    package: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the manifest says, hexadecimal: artifacts of equal fingerprint run the same files."""
        return fingerprint(self._data())

    def to_json(self) -> bytes:
        """Return the content of manifest.json."""
        return sealed(self._data())

    def _data(self) -> dict[str, Any]:
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        later = ("bits_per_weight", "package")  # without them manifests are as they were before there were these
        return {key: value for key, value in data.items() if value is not None or key not in later}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder; the files are not looked at.

        Raises:
            ArtifactError: there is none, it is of another format, or a path leaves the folder.
            DamagedManifestError: it is not JSON, of another version, or was changed.
        """
        path, mend = folder / MANIFEST, "Compile the model again"
        try:
            check_plain(path)
            content = path.read_bytes()
            data = unsealed(content)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise no_artifact(folder, MANIFEST, REPORT) from error
        except OSError as error:
            raise ArtifactError(str(path), f"it cannot be read: {error}", mend) from error
        except (ValueError, RecursionError) as error:
            raise DamagedManifestError(str(path), f"it cannot be read: {error}", mend) from error
        if data.pop("format", None) != FORMAT:
            raise ArtifactError(str(path), "it is not a manifest of qcompile", "Give the folder that compile wrote")
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            reason = f"it has format version {version!r}; this qcompile reads {FORMAT_VERSION}"
            raise DamagedManifestError(str(path), reason, "Use the qcompile that wrote it, or compile again")
        try:
            data |= {key: tuple(map(_port, data[key])) for key in ("inputs", "outputs")}
            files = {str(name): FileEntry(**entry) for name, entry in data.pop("files").items()}
            manifest = cls(files=files, **data)
            manifest._check_types()
        except (AttributeError, KeyError, TypeError) as error:
            raise DamagedManifestError(str(path), f"an entry is missing or wrong: {error}", mend) from error
        if manifest.package == manifest.model_file:
            raise DamagedManifestError(str(path), "its package is its model file", mend)
        loaded = [name for name in (manifest.model_file, manifest.package) if name is not None]
        for name in (*files, *loaded):
            _check_path(name, path)
        for name in loaded:
            if name not in files:
                reason = f"its model file {name!r} is not among its files"
                raise DamagedManifestError(str(path), reason, mend)
        if manifest.to_json() != content:
            raise DamagedManifestError(str(path), "it was changed: its fingerprint does not fit", mend)
        return manifest

    def _check_types(self) -> None:
        for name, wanted in (("backend", str), ("model_file", str), ("recipe", Mapping), ("versions", Mapping)):
            if not isinstance(getattr(self, name), wanted):
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        if not isinstance(self.package, str | None):
            raise TypeError(f"package is {self.package!r}")
        for name, bits in (self.bits_per_weight or {}).items():
            if not isinstance(bits, float):
                raise TypeError(f"bits_per_weight of {name} is {bits!r}")

    def check_files(self, folder: Path) -> None:
        """Compare the files of the manifest with those in the folder.

        Raises:
            ArtifactError: a file is missing, too many, a link or differs in size or digest; with its name.
        """
        mend = "Copy the whole folder again, or compile again"
        present = set(relative_files(folder))
        for name in sorted(present - set(self.files) - UNLISTED):
            raise ArtifactError(str(folder / name), "it is in the folder and not in the manifest", "Move it elsewhere")
        for name, entry in sorted(self.files.items()):
            path = folder / name
            if name not in present:
                raise ArtifactError(str(path), "it is in the manifest and not in the folder", mend)
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(str(path), "it is not a plain file", mend)
            if path.stat().st_size != entry.size:
                reason = f"it has {path.stat().st_size} bytes; the manifest says {entry.size}"
                raise ArtifactError(str(path), reason, mend)
            if FileEntry.of(path) != entry:
                raise ArtifactError(str(path), "its SHA-256 differs from the manifest", mend)


def files_to_replace(folder: Path) -> frozenset[str]:
    """Return the files of an artifact that may be deleted; where its manifest is damaged, those that its report names.

    Raises:
        ArtifactError: the folder holds something else.
    """
    try:
        return frozenset(Manifest.read(folder).files)
    except DamagedManifestError:
        named = _files_of_report(folder / REPORT)
        if named is None:
            raise
        return named


def _files_of_report(path: Path) -> frozenset[str] | None:
    """Return what a whole report names; None where it is damaged, or of another tool that has files of this name."""
    try:
        check_plain(path)
        content = path.read_bytes()
        data = unsealed(content)
        named = data[FILES] if sealed(data) == content else None
    except (OSError, ValueError, KeyError, RecursionError):
        return None
    return frozenset(map(str, named)) if isinstance(named, list) else None


def relative_files(folder: Path) -> list[str]:
    """Return everything in the folder that is not itself a folder, as paths with forward slashes, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def versions(runtime: str) -> dict[str, str]:
    """Return the versions of qcompile, onnx, onnx-ir and the runtime, of those that are installed packages."""
    found = {}
    for name in ("qcompile", "onnx", "onnx-ir", runtime):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def ports(values: Iterable[ir.Value]) -> tuple[Port, ...]:
    """Return the ports of graph inputs or outputs."""
    return tuple(map(Port.of, values))


def check_native(output: str, dtype: np.dtype[Any]) -> None:
    """Raise ModelError for an output of a type that numpy does not have: runtimes cannot hand it out."""
    if dtype.isbuiltin == 2:  # a type that another package, ml_dtypes, added
        raise ModelError(f"output {output}", f"its type is {dtype}, which numpy does not have", "Cast it to float32")


def _port(data: Mapping[str, Any]) -> Port:
    name, dtype, shape = data["name"], data["dtype"], data["shape"]
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list | None)):
        raise TypeError(f"{data!r} is no input or output")
    for size in shape or ():
        if not (size is None or isinstance(size, str) or (type(size) is int and size >= 0)):
            raise TypeError(f"{size!r} is no size of {name}")
    return Port(name, str(np.dtype(dtype)), None if shape is None else tuple(shape))


def _check_path(name: str, manifest: Path) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
        raise ArtifactError(str(manifest), f"the path {name!r} leaves the folder", "Do not use this artifact")
