"""What is given in the place of an artifact: what it looks like, and what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from qcompile.errors import ArtifactError
from qcompile.frontend.huggingface import is_folder

_WANTED = "Give the folder that qcompile compile wrote (-o)"
_MODELS = (".onnx", ".gguf", ".pt2")
"""Endings of files that compile takes."""


def no_artifact(path: Path, manifest: str, report: str) -> ArtifactError:
    """Return the error for a path that is no folder, or a folder without the manifest that an artifact has.

    Where the report of an artifact is there, the manifest alone is missing.
    """
    if not path.is_dir():
        if not path.exists():
            return ArtifactError(str(path), f"there is no such folder, with a {manifest} in it", _WANTED)
        mend = _compile(path) if path.suffix in _MODELS else _WANTED
        return ArtifactError(str(path), "it is a file, and no folder of an artifact", mend)
    names = sorted(file.name for file in path.iterdir())
    if report in names:
        mend = "Copy the artifact again, with all of its files, or compile it again"
        return ArtifactError(str(path / manifest), f"there is no such file, beside a {report}", mend)
    models = [name for name in names if name.endswith(_MODELS)]
    if is_folder(path) and any(name.endswith(".safetensors") for name in names):
        reason = f"it is the folder of a model, with config.json and safetensors, and no artifact: it has no {manifest}"
        return ArtifactError(str(path), reason, _compile(path))
    if models:
        reason = f"it holds {models[0]} and no {manifest}: it is no artifact that qcompile wrote"
        return ArtifactError(str(path), reason, _compile(path / models[0]))
    held = f"it holds {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else "it is empty"
    return ArtifactError(str(path), f"{held}, and no {manifest}: it is no artifact", _WANTED)


def _compile(path: Path) -> str:
    return f"Compile it first: qcompile compile {shlex.quote(str(path))} -o DIR, and give DIR"
