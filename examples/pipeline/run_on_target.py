"""Check an artifact and run it: with numpy and onnxruntime, and without qcompile.

    python run_on_target.py build/model inputs.npz outputs.npz

The manifest has the SHA-256 of every file, and the fingerprint of itself that compile_in_ci.py printed. Whether
somebody has changed both is told by a signature (qcompile.artifact_signature), which openssl checks without qcompile:

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in manifest.json -sigfile manifest.json.sig
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

UNLISTED = {"manifest.json", "manifest.json.sig", "report.json", "report.html"}


def check(folder: Path) -> dict:
    """Return the manifest of the folder when each file is as it was written; exits with the name of one that is not."""
    path = folder / "manifest.json"
    if not path.is_file():
        sys.exit(f"error: there is no {path}: give the folder that compile_in_ci.py wrote")
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        fingerprint = manifest.pop("fingerprint")
    except (ValueError, TypeError, AttributeError, KeyError):
        sys.exit("error: manifest.json was changed")
    unsealed = json.dumps(manifest, indent=1) + "\n"
    sealed = json.dumps({**manifest, "fingerprint": fingerprint}, indent=1) + "\n"
    if sealed.encode() != content or hashlib.sha256(unsealed.encode()).hexdigest() != fingerprint:
        sys.exit("error: manifest.json was changed")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(present - set(manifest["files"]) - UNLISTED):
        sys.exit(f"error: {name} is not in the manifest")
    for name, entry in manifest["files"].items():
        if name not in present or hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry["sha256"]:
            sys.exit(f"error: {name} is missing or was changed")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the artifact")
    parser.add_argument("inputs", help="an .npz file: name of an input -> array")
    parser.add_argument("outputs", help="the .npz file to write: name of an output -> array")
    given = parser.parse_args()
    manifest = check(given.folder)
    session = onnxruntime.InferenceSession(given.folder / manifest["model_file"])
    names = [output.name for output in session.get_outputs()]
    if not zipfile.is_zipfile(given.inputs):
        sys.exit(f"error: {given.inputs} is no .npz file")
    try:
        feed = dict(np.load(given.inputs))
        outputs = session.run(names, feed)
        np.savez(given.outputs, **dict(zip(names, outputs, strict=True)))
    except (OSError, ValueError, zipfile.BadZipFile, InvalidArgument) as error:  # a file, or inputs that do not fit
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
