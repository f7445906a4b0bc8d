"""Real artifacts on a processor without VNNI: qemu's Haswell, on which the runtimes pick their kernels by themselves.

What there is of this processor is emulated instruction by instruction: vpmaddubsw saturates as it does in silicon.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile
from qcompile import outcome
from qcompile.artifact import Artifact
from tests.test_saturating_targets import data, saturating_model

QEMU = shutil.which("qemu-x86_64") if (sys.platform, platform.machine()) == ("linux", "x86_64") else None
ROOT = Path(__file__).resolve().parents[1]
TARGETS = (None, "avx2")
Artifacts = dict[tuple[str, str, str | None], Artifact]
CASES = (("onnxruntime", "w8a8-static"), ("onnxruntime", "w8a8-dynamic"), ("openvino", "w8a8-static"))
"""Dynamic activations OpenVINO computes in float there, which is right with any target."""


pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(QEMU is None, reason="there is no qemu-x86_64 (Debian: qemu-user), or the processor is no x86"),
]

VERIFY_AND_COMPILE = """
import json, sys
import qcompile
from qcompile import outcome, processor
from tests.test_saturating_targets import data, saturating_model

def verified(folder):
    return [found.max_steps for found in qcompile.verify(folder).agreements]

def compiled():
    outcome.LATENCY_SECONDS = 0.01
    qcompile.compile(saturating_model(), "w8a8-static", calibration=data(2))

def error_of(work, *arguments):
    try:
        return work(*arguments)
    except qcompile.QCompileError as error:
        return f"{type(error).__name__} {error}"

said = {folder: error_of(verified, folder) for folder in sys.argv[1:]}
said["targets"] = [name for name in ("avx2", "avx512-vnni") if processor.runs_target(name)]
said["compiled"] = error_of(compiled)
print(json.dumps(said))
"""

PLAIN = """
import json, sys
import numpy, onnxruntime

feed = dict(numpy.load(sys.argv[1]))
sessions = {path: onnxruntime.InferenceSession(path) for path in sys.argv[2:]}
print(json.dumps({path: session.run(None, feed)[0].tolist() for path, session in sessions.items()}))
"""


def on_haswell(code: str, *arguments: object) -> Any:
    """What the code prints as JSON there."""
    command = [str(QEMU), "-cpu", "Haswell", sys.executable, "-P", "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    """Compiled and verified on this processor, by backend, recipe and target."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "LATENCY_SECONDS", 0.01)
        for (backend, recipe), target in itertools.product(CASES, TARGETS):
            found[backend, recipe, target] = qcompile.compile(
                saturating_model(), recipe, backend=backend, calibration=data(2), target=target
            )
    return found


@pytest.fixture(scope="module")
def said(artifacts: Artifacts) -> dict[str, Any]:
    """What qcompile says there: of one process, for its imports take most of the time."""
    found: dict[str, Any] = on_haswell(VERIFY_AND_COMPILE, *(artifact.path for artifact in artifacts.values()))
    return found


def refuses_saturation(text: str) -> bool:
    return text.startswith("VerificationError") and "quantization steps" in text and 'target="avx2"' in text


@pytest.mark.parametrize("case", CASES)
def test_verify_passes_what_was_compiled_for_it_and_refuses_what_saturates(
    case: tuple[str, str], artifacts: Artifacts, said: dict[str, Any]
) -> None:
    assert max(said[str(artifacts[*case, "avx2"].path)]) <= 1e-3
    assert refuses_saturation(said[str(artifacts[*case, None].path)])


def test_compile_refuses_what_saturates_and_knows_the_processor(said: dict[str, Any]) -> None:
    """/proc/cpuinfo describes the processor below the emulator; the runtimes and qcompile ask the emulated one."""
    assert refuses_saturation(said["compiled"])
    assert said["targets"] == ["avx2"]


def test_plain_onnxruntime_gives_the_outputs_of_the_processor_that_compiled(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    (feed,) = data(1)
    np.savez(tmp_path / "feed.npz", **feed)
    mine = {str(each.model_path): each for (backend, *_), each in artifacts.items() if backend == "onnxruntime"}
    for path, values in on_haswell(PLAIN, tmp_path / "feed.npz", *mine).items():
        expected = mine[path].run(feed)["y"]
        error = np.max(np.abs(np.array(values) - expected)) / np.max(np.abs(expected))
        assert error < 1e-5 if mine[path].manifest.target == "avx2" else error > 0.1
