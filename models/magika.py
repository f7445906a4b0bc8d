"""magika: an .onnx file that tells the type of a file from 2,048 of its bytes, and installed files to look at."""

from __future__ import annotations

import itertools
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import CalibrationError
from qcompile.models.installed import package_file
from qcompile.models.reference import Feed, ReferenceModel

REQUIREMENT = "--no-deps magika==1.0.3"
_FOLDER = ("models", "standard_v3_3")

# File name extension -> label of the model, for types that an installation of Python holds many of.
EXTENSIONS = {
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".so": "elf",
    ".json": "json",
    ".html": "html",
    ".css": "css",
    ".js": "javascript",
    ".md": "markdown",
    ".rst": "rst",
    ".png": "png",
    ".npz": "npz",
    ".npy": "npy",
    ".xml": "xml",
    ".svg": "svg",
    ".csv": "csv",
    ".toml": "toml",
    ".cpp": "cpp",
    ".sh": "shell",
}


def model_path() -> Path:
    """Path of the .onnx file; raises MissingDependencyError when magika is not installed."""
    return package_file("magika", REQUIREMENT, *_FOLDER, "model.onnx")


def configuration() -> dict[str, Any]:
    """Return the model's own settings: sizes of its input and, as `target_labels_space`, the label of every class."""
    settings: dict[str, Any] = json.loads(
        package_file("magika", REQUIREMENT, *_FOLDER, "config.min.json").read_text(encoding="utf-8")
    )
    return settings


def features(content: bytes, settings: dict[str, Any]) -> np.ndarray:
    """First and last bytes of a file, stripped of white space and padded: int32 [1, begin size + end size]."""
    begin, end, padding = settings["beg_size"], settings["end_size"], settings["padding_token"]
    head = content[: settings["block_size"]].lstrip()[:begin]
    tail = content[-settings["block_size"] :].rstrip()[-end:]
    row = [*head, *[padding] * (begin - len(head)), *[padding] * (end - len(tail)), *tail]
    return np.array([row], dtype=np.int32)


def labelled_samples(count: int) -> list[tuple[Feed, str]]:
    """Features of installed files of known type and their labels: types take turns, no two feeds are equal.

    The same for one installation.

    Raises:
        CalibrationError: when the installation holds fewer.
    """
    settings = configuration()
    distinct: dict[bytes, tuple[Feed, str]] = {}
    for path in _in_turns(_installed_files().values()):
        row = features(path.read_bytes(), settings)
        if (row == settings["padding_token"]).any():
            continue  # too short to tell its type from
        distinct.setdefault(row.tobytes(), ({"bytes": row}, EXTENSIONS[path.suffix]))
        if len(distinct) == count:
            return list(distinct.values())
    raise CalibrationError("reference files", f"only {len(distinct)} of {count} are installed", "Ask for fewer")


def _installed_files() -> dict[str, list[Path]]:
    """Installed files by extension, in the order of their paths."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    found: dict[str, set[str]] = {extension: set() for extension in EXTENSIONS}
    for folder, _, names in itertools.chain.from_iterable(map(os.walk, sorted(roots))):
        for name in names:
            extension = os.path.splitext(name)[1]
            if extension in found:
                found[extension].add(os.path.join(folder, name))
    return {extension: [Path(path) for path in sorted(paths)] for extension, paths in found.items()}


def _in_turns(groups: Iterable[list[Path]]) -> Iterator[Path]:
    for row in itertools.zip_longest(*groups):
        yield from (path for path in row if path is not None)


def load(calibration: int = 64, held_out: int = 256) -> ReferenceModel:
    """Return the path of the model, and features of installed files to calibrate on and of others to measure on.

    Raises:
        MissingDependencyError: when magika is not installed.
    """
    path = model_path()
    feeds = [feed for feed, _ in labelled_samples(calibration + held_out)]
    return ReferenceModel(path, feeds[0], feeds[:calibration], feeds[calibration:])
