"""Weights that were solved lie in files: read again bit by bit, solved again where damaged, taken up after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import finished_layers
from qcompile.errors import ArtifactError
from qcompile.finished_layers import FinishedLayers, layers_beside, tensor_of
from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence, Grouped
from qcompile.solvers.rtn import rtn
from tests.artifacts import files

ROOT = Path(__file__).resolve().parents[1]
WEIGHT = np.random.default_rng(0).standard_normal((33, 7), dtype=np.float32)
LAYERS = 6

WRITE_KILLED = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
import onnx_ir as ir
from qcompile.compile import compile

replace, layers = os.replace, range({LAYERS})
rng = np.random.default_rng(0)
body = "".join(f"h{{i + 1}} = MatMul(h{{i}}, w{{i}})" + chr(10) for i in layers)
text = '<ir_version: 10, opset_import: ["" : 23]> g (float[n, 64] h0) => (float[n, 64] h{LAYERS}) {{' + body + '}}'
arrays = [ir.tensor(rng.standard_normal((64, 64), dtype=np.float32), name=f"w{{i}}") for i in layers]
model = ir.from_onnx_text(text, initializers=arrays)


def writer(output, moment):
    # What this process solves, it counts in a file beside the output.
    solved = output.parent / "solved"
    solved.write_text("")

    def watched(source, target):
        if str(target).endswith(".npz"):
            if moment == str(len(solved.read_text())):
                os.kill(os.getpid(), signal.SIGKILL)
            solved.write_text(solved.read_text() + ".")
        replace(source, target)

    def progress(stage, part):
        if stage == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = watched
    compile(model, "w4a16-hqq", output=output, verify=False, tune="none", progress=progress)


for task in sys.argv[1:]:
    output, moment = task.rsplit("@", 1)
    Path(output).parent.mkdir(exist_ok=True)
    process = os.fork()
    if not process:
        writer(Path(output), moment)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    solved = len((Path(output).parent / "solved").read_text())
    kept = len(list(Path(output).with_name(".out.qcompile-layers").glob("*.npz")))
    print(os.waitstatus_to_exitcode(status), solved, kept)
"""


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_what_was_solved_is_read_again_bit_by_bit(tmp_path: Path, bits: int, sym: bool) -> None:
    scheme, store = GroupScheme(bits, 16, sym), FinishedLayers(tmp_path)
    found, file = store.solved(WEIGHT, NOTHING_SEEN, scheme, lambda: rtn(WEIGHT, scheme))
    again, same = store.solved(WEIGHT, NOTHING_SEEN, scheme, _not_called)
    assert same == file
    for part in ("integers", "scale", "zero_point"):
        first, second = getattr(found, part), getattr(again, part)
        assert (first is None) == (second is None)
        assert first is None or (first.dtype == second.dtype and np.array_equal(first, second))


def test_a_tensor_reads_its_part_of_the_file_each_time(tmp_path: Path) -> None:
    scheme = GroupScheme(4, 16)
    found, file = FinishedLayers(tmp_path).solved(WEIGHT, NOTHING_SEEN, scheme, lambda: rtn(WEIGHT, scheme))
    integers = tensor_of(file, "integers", found.integers, ir.DataType.INT4, "w")
    assert (integers.dtype, tuple(integers.shape), integers.name) == (ir.DataType.INT4, (33, 7), "w")
    np.testing.assert_array_equal(integers.numpy().astype(np.int8), found.integers)
    np.testing.assert_array_equal(tensor_of(file, "scale", found.scale, ir.DataType.FLOAT, "s").numpy(), found.scale)
    zeros = tensor_of(file, "zero_point", np.zeros((3, 7)), ir.DataType.INT4, "z")
    np.testing.assert_array_equal(zeros.numpy().astype(np.int8), np.zeros((3, 7)))
    file.unlink()
    with pytest.raises(FileNotFoundError):
        integers.numpy()


def test_a_remark_is_kept(tmp_path: Path) -> None:
    store, found = FinishedLayers(tmp_path), rtn(WEIGHT, GroupScheme(4, 16))
    store.solved(WEIGHT, NOTHING_SEEN, 4, lambda: Grouped(found.integers, found.scale, None, "damped"))
    assert store.solved(WEIGHT, NOTHING_SEEN, 4, _not_called)[0].remark == "damped"


@pytest.mark.parametrize("change", ["weight", "evidence", "settings"])
def test_whatever_decides_on_the_result_has_its_own_file(tmp_path: Path, change: str) -> None:
    store, scheme = FinishedLayers(tmp_path), GroupScheme(4, 16)
    seen = Evidence(None, np.ones(33, np.float32))
    store.solved(WEIGHT, seen, "range_grid=5", lambda: rtn(WEIGHT, scheme))
    weight = np.where(np.arange(7) == 3, np.nextafter(WEIGHT, np.inf), WEIGHT) if change == "weight" else WEIGHT
    seen = Evidence(None, np.full(33, 2, np.float32)) if change == "evidence" else seen
    store.solved(weight, seen, "range_grid=6" if change == "settings" else "range_grid=5", lambda: rtn(weight, scheme))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "another shape", "compression", "password", "name"])
def test_a_damaged_file_is_solved_again(tmp_path: Path, damage: str) -> None:
    store, scheme = FinishedLayers(tmp_path), GroupScheme(4, 16, sym=False)
    found, file = store.solved(WEIGHT, NOTHING_SEEN, scheme, lambda: rtn(WEIGHT, scheme))
    data = bytearray(file.read_bytes())
    if damage == "one bit":
        data[data.index(found.scale.tobytes()) + 5] ^= 1
    in_directory = data.rindex(b"PK\x01\x02", 0, data.rindex(b"zero_point.npy"))
    if damage in ("compression", "password"):
        data[in_directory + (10 if damage == "compression" else 8)] |= 1
    if damage == "name":
        data[data.rindex(b"zero_point.npy") + 10] = ord("_")
    if damage == "another shape":
        other = store.solved(WEIGHT.T, NOTHING_SEEN, scheme, lambda: rtn(WEIGHT.T, scheme))[1]
        data = bytearray(other.read_bytes())
    file.write_bytes({"cut off": data[: len(data) // 2], "empty": b""}.get(damage, data))
    calls = []
    again, _ = store.solved(WEIGHT, NOTHING_SEEN, scheme, lambda: calls.append(1) or rtn(WEIGHT, scheme))
    assert calls == [1]
    np.testing.assert_array_equal(again.scale, found.scale)
    store.solved(WEIGHT, NOTHING_SEEN, scheme, _not_called)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    store = FinishedLayers(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="a finished layer cannot be kept"):
        store.solved(WEIGHT, NOTHING_SEEN, 4, lambda: rtn(WEIGHT, GroupScheme(4, 16)))


def test_the_layers_go_with_the_end_of_the_work_but_not_where_the_user_interrupts_it(tmp_path: Path) -> None:
    with layers_beside(tmp_path / "out"):
        pass
    with pytest.raises(ValueError, match="failed"), layers_beside(tmp_path / "out"):
        raise ValueError("failed")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), layers_beside(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []  # there was nothing to keep
    with pytest.raises(KeyboardInterrupt), layers_beside(tmp_path / "out") as store:
        _interrupted_behind_a_layer(store)
    assert [path.name for path in tmp_path.iterdir()] == [".out.qcompile-layers"]
    with layers_beside(None) as temporary:
        assert temporary.folder.is_dir()
    assert not temporary.folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_a_killed_compilation_solves_no_layer_twice_but_one_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    moments = {"0": 0, "3": 3, "lowering": LAYERS, "measuring": LAYERS}
    tasks = [f"{tmp_path / moment / 'out'}@{when}" for moment in moments for when in (moment, "never")]
    command = [sys.executable, "-c", WRITE_KILLED, f"{tmp_path / 'whole' / 'out'}@never", *tasks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert found[0] == (0, LAYERS, 0)
    expected = _files_of(tmp_path / "whole" / "out")
    for (moment, finished), killed, after in zip(moments.items(), found[1::2], found[2::2], strict=True):
        assert killed == (-signal.SIGKILL, finished, finished)
        assert after == (0, LAYERS - finished, 0), "the layer that was at work is solved again, and none that was kept"
        assert _files_of(tmp_path / moment / "out") == expected
        assert sorted(path.name for path in (tmp_path / moment).iterdir()) == ["out", "solved"]


def _files_of(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(output).items() if name != "report.json"}


def _not_called() -> Grouped:
    raise AssertionError(f"{finished_layers.__name__} has it")


def _interrupted_behind_a_layer(store: FinishedLayers) -> None:
    store.solved(WEIGHT, NOTHING_SEEN, 4, lambda: rtn(WEIGHT, GroupScheme(4, 16)))
    raise KeyboardInterrupt
