"""Compile an ONNX file on the build machine, and fail the build where the result is not good enough.

    python compile_in_ci.py model.onnx samples.npz build/model

Leaves a folder to copy to the target as it is; run_on_target.py is all that is needed there besides onnxruntime.
"""

from __future__ import annotations

import argparse
import sys

import qcompile

LEAST_SQNR_DB = 10.0
"""Signal-to-noise ratio of the outputs, to those of the float model, below which the build fails."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the float model, an .onnx file")
    parser.add_argument("samples", help="calibration data, an .npz file of stacked samples")
    parser.add_argument("output", help="the folder to write; an artifact in it is replaced")
    given = parser.parse_args()
    try:
        artifact = qcompile.compile(given.model, "w8a8-static", calibration=given.samples, output=given.output)
    except qcompile.QCompileError as error:
        sys.exit(f"error: {error}")
    print(artifact.report.summary())
    if not artifact.report.accuracy["sqnr_db"] >= LEAST_SQNR_DB:  # NaN, of outputs that hold it, fails too
        sys.exit(f"error: {artifact.report.accuracy['sqnr_db']:.1f} dB is not {LEAST_SQNR_DB} dB")
    print(f"fingerprint {artifact.manifest.fingerprint}")


if __name__ == "__main__":
    main()
