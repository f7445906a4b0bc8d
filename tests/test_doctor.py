"""What the runtimes of a machine can do is measured, not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qcompile.backends import BACKENDS, get
from qcompile.doctor import diagnose, examine
from qcompile.errors import UnsupportedError


def test_both_runtimes_are_right_here_and_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    stages: list[str] = []
    found = diagnose(progress=lambda stage, _part: stages.append(stage))
    assert found.problems == []
    assert {record.name for record in caplog.records} <= {"qcompile.backends.triton.runtime"}  # there is no card
    assert [each.backend for each in found.runtimes] == list(BACKENDS)
    for runtime in found.runtimes:
        assert runtime.version
        assert all(runtime.says.values())
        assert [check.name for check in runtime.checks] == ["static", "dynamic"]
        for check in runtime.checks:
            assert check.max_steps is not None
            assert check.max_steps < 1
            timed = not get(runtime.backend).untimed()
            assert (check.float_ms is not None, check.quantized_ms is not None) == (timed, timed)
    assert json.loads(json.dumps(found.to_dict()))["problems"] == []
    assert len(stages) == len(BACKENDS)


def test_a_runtime_of_another_device_has_no_target_among_processors() -> None:
    assert "avx2" not in get("triton").targets
    assert [check.target for check in examine("triton", "avx2").checks] == [None, None]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="z80"):
        diagnose(target="z80")


IN_ANOTHER_WORLD = """
import sys
from qcompile import doctor, outcome
outcome.LATENCY_SECONDS = 0.05
"""


def said(code: str, **environment: str) -> list[str]:
    """What the code prints in a process of its own."""
    command = [sys.executable, "-c", IN_ANOTHER_WORLD + code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_products_that_saturate_are_found_and_the_target_mends_them() -> None:
    """64.0 becomes 32.4 where products are added in 16 bits, here by asking OpenVINO for AVX2."""
    wrong, right = said(
        "for target in (None, 'avx2'):\n"
        "    check = doctor.examine('openvino', target).checks[0]; print(check.problem, check.mend)",
        ONEDNN_MAX_CPU_ISA="AVX2",
    )
    assert wrong.startswith("static INT8 is wrong: y is up to")
    assert "--target avx2" in wrong
    assert right == " "


def test_a_runtime_that_is_not_installed_is_no_problem_and_one_that_cannot_be_imported_is() -> None:
    broken, absent = said(
        "sys.modules['openvino'] = None\n"
        "print(doctor.examine('openvino'))\n"
        "doctor.versions = lambda runtime: {}\n"
        "print(doctor.examine('openvino'))"
    )
    assert "it is installed, and the package openvino cannot be imported" in broken
    assert "pip install 'qcompile[openvino]', with --force-reinstall" in broken
    assert absent == "Runtime(backend='openvino', version=None, says={}, checks=(), problem='', mend='')"
