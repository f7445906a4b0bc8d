"""What the runtimes of a machine can do is measured, not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qcompile.backends import BACKENDS
from qcompile.doctor import diagnose
from qcompile.errors import UnsupportedError


def test_both_runtimes_are_right_here_and_are_measured() -> None:
    stages: list[str] = []
    found = diagnose(progress=lambda stage, _part: stages.append(stage))
    assert found.problems == []
    assert [each.backend for each in found.runtimes] == list(BACKENDS)
    for runtime in found.runtimes:
        assert runtime.version
        assert all(runtime.says.values())
        assert [check.name for check in runtime.checks] == ["static", "dynamic"]
        for check in runtime.checks:
            assert check.max_steps is not None
            assert check.max_steps < 1
            assert check.float_ms is not None
            assert check.quantized_ms is not None
    assert json.loads(json.dumps(found.to_dict()))["problems"] == []
    assert len(stages) == len(BACKENDS)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="z80"):
        diagnose(target="z80")


DOCTOR = "import sys; from qcompile.cli import main; main()"


@pytest.mark.parametrize(("options", "wrong"), [([], True), (["--target", "avx2"], False)], ids=["none", "avx2"])
def test_products_that_saturate_are_found_and_the_target_mends_them(options: list[str], wrong: bool) -> None:
    """64.0 becomes 32.4 where products are added in 16 bits, here by asking OpenVINO for AVX2."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", DOCTOR, "doctor", "--json", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    data = json.loads(done.stdout)
    assert done.returncode == (5 if data["problems"] else 0)
    static = next(run["checks"][0] for run in data["runtimes"] if run["backend"] == "openvino")
    assert ("static INT8 is wrong" in static["problem"]) is wrong
    assert ("--target avx2" in static["mend"]) is wrong
