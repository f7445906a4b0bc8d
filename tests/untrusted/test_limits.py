"""The first read of a model ends, whatever the model is, and says why."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import onnx.helper as oh
import onnx.parser
import pytest

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.frontend import trace
from qcompile.untrusted.limits import MOST_BYTES, first_read, processor_seconds

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul(x, w) }
"""


@pytest.fixture
def content() -> bytes:
    return onnx.parser.parse_model(TEXT).SerializeToString()


def test_a_model_is_let_through(content: bytes, tmp_path: Path) -> None:
    first_read(content, len(content), "m")
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with path.open("rb") as stream:
        first_read(stream, len(content), "m")


def split_into(parts: int) -> bytes:
    """Shape inference of Split makes a list as long as `num_outputs` says."""
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2**40]) for name in "xy")
    node = oh.make_node("Split", ["x"], ["y"], num_outputs=parts)
    graph = oh.make_graph([node], "g", [x], [y])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_memory_that_a_header_claims_is_not_given() -> None:
    content = split_into(2**33)
    start = time.perf_counter()
    with pytest.raises(UnsafeModelError, match="more memory than a model of its length may"):
        trace(content)
    assert time.perf_counter() - start < 5


def test_a_model_of_many_empty_messages_is_refused() -> None:
    nodes = b"\x0a\x00" * 5_000_000  # 10 MB that would take 800
    content = b"\x3a" + b"\x80\xad\xe2\x04" + nodes
    start = time.perf_counter()
    with pytest.raises(UnsafeModelError, match="more than 100000 nodes"):
        trace(content)
    assert time.perf_counter() - start < 5


def reads_under(content: bytes, memory: int, seconds: int, before=None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "qcompile.untrusted", "m", str(memory), str(seconds)]
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, input=content, capture_output=True, env=environment, check=False, preexec_fn=before)


def test_the_limit_of_time_ends_the_process(content: bytes) -> None:
    """A graph whose nodes each read all values: shape inference goes through ten million of them."""
    names = [f"x{index}" for index in range(3000)]
    nodes = [oh.make_node("Sum", names, [f"y{index}"]) for index in range(3000)]
    inputs = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in names]
    graph = oh.make_graph(nodes, "g", inputs, [oh.make_tensor_value_info("y0", onnx.TensorProto.FLOAT, [2])])
    slow = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)]).SerializeToString()
    assert reads_under(slow, 2**32, 1).returncode < 0
    assert reads_under(content, 2**32, 3).returncode == 0


def test_stricter_limits_that_are_there_already_stay(content: bytes) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    found = reads_under(content, 2**40, 100, before=limit)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    starved = reads_under(split_into(2**33), 2**40, 100, before=limit)
    assert json.loads(starved.stdout) == {"type": "MemoryError", "scarce": True}


def test_time_and_memory_grow_with_the_length() -> None:
    assert processor_seconds(0) == 3
    assert processor_seconds(19 * 2**30 // 10) > 3 * 12  # as measured, on a core three times as slow
    length = 2**28
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[2**14, 2**14], raw_data=bytes(length))
    y = oh.make_tensor_value_info("y", onnx.TensorProto.UINT8, [2**14, 2**14])
    graph = oh.make_graph([oh.make_node("Constant", [], ["y"], value=weight)], "g", [], [y])
    content = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10).SerializeToString()
    first_read(content, length, "m")


def started_with(lines: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run lines in every Python that starts, before anything else."""
    (folder / "sitecustomize.py").write_text(lines)
    monkeypatch.syspath_prepend(folder)


def test_a_process_that_cannot_import_is_not_the_fault_of_the_model(content, tmp_path, monkeypatch) -> None:
    started_with("import sys\nsys.modules['onnx'] = None", tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="fails before it does") as caught:
        first_read(content, len(content), "m")
    assert not isinstance(caught.value, UnsafeModelError)


@pytest.mark.parametrize(("end", "reason"), [("{}[0]", "exit code 3"), ("os.abort()", "Aborted")])
def test_what_ends_the_read_is_the_fault_of_the_model(content, tmp_path, monkeypatch, end: str, reason: str) -> None:
    lines = f"import os, qcompile.untrusted.structure as s\ndef check_structure(*given): {end}\n"
    started_with(lines + "s.check_structure = check_structure", tmp_path, monkeypatch)
    for name in ("SIGXCPU", "SIGKILL"):  # Windows has neither
        monkeypatch.delattr(signal, name)
    with pytest.raises(UnsafeModelError, match=reason):
        first_read(content, len(content), "m")


def test_a_name_that_is_not_text_is_no_crash(content: bytes) -> None:
    for given in (content.replace(b"MatMul", b"Mat\xff\xfeul"), content.replace(b"MatMul", b"Mat\xff\xfeu")):
        with pytest.raises(ModelError) as caught:
            trace(given)
        assert not isinstance(caught.value, UnsafeModelError)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", "/dev/zero", tmp_path, "null\0.onnx"):
        with pytest.raises(ModelError, match=r"not a plain file|cannot be read"):
            trace(path)


def test_what_protobuf_cannot_hold_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    with pytest.raises(ModelError, match="longer than 2 GiB"):
        trace(path)


def test_modules_beside_the_user_are_not_imported(content: bytes, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    first_read(content, len(content), "m")
