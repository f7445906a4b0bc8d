"""The ONNX door reads every form of a model, and refuses what is none."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as oh
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.frontend import trace

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul(x, w) }
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_every_form_gives_the_same_model(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for given in (path, str(path), proto.SerializeToString(), proto, ir.from_proto(proto)):
        model = trace(given)
        assert (
            ir.to_proto(model).graph.SerializeToString() == ir.to_proto(ir.from_proto(proto)).graph.SerializeToString()
        )


def test_the_standard_domain_has_one_name(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    for given in (proto, ir.from_proto(proto)):
        assert dict(trace(given).opset_imports) == {"": 20}


def test_the_callers_objects_stay_as_they_are(proto: onnx.ModelProto) -> None:
    before = proto.SerializeToString()
    traced = trace(proto)
    traced.graph[0].name = "renamed"
    assert proto.SerializeToString() == before
    model = ir.from_proto(proto)
    copy = trace(model)
    copy.graph.remove(copy.graph[0])
    assert len(model.graph) == 1


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.99])
def test_truncated_bytes_are_refused(proto: onnx.ModelProto, keep: float) -> None:
    content = proto.SerializeToString()
    with pytest.raises(ModelError) as caught:
        trace(content[: int(len(content) * keep)])
    assert caught.value.mend


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("not a model")
    for given in (path, tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(ModelError):
            trace(given)


def test_a_graph_that_reads_what_nobody_makes_is_refused(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="not valid ONNX"):
        trace(proto)


@pytest.mark.parametrize("field", ["type", "shape"])
def test_an_output_without_type_or_shape_gets_what_can_be_inferred(proto: onnx.ModelProto, field: str) -> None:
    expected = ir.to_proto(ir.from_proto(proto)).graph.output[0]
    output = proto.graph.output[0]
    (output if field == "type" else output.type.tensor_type).ClearField(field)
    for given in (proto, ir.from_proto(proto)):
        assert ir.to_proto(trace(given)).graph.output[0] == expected


def test_an_output_without_a_shape_that_can_be_inferred_is_named(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "custom"
    proto.opset_import.add(domain="custom", version=1)
    assert trace(proto).graph[0].domain == "custom"
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for given in (proto, ir.from_proto(proto)):
        with pytest.raises(ModelError, match="output 'y' has no shape"):
            trace(given)


def test_an_input_without_a_shape_is_named(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no shape"):
        trace(proto)


def test_the_mend_for_an_input_without_a_shape_mends_it(proto: onnx.ModelProto, tmp_path: Path) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    with pytest.raises(ModelError) as caught:
        trace(path)
    code = re.search("such as: (.*); and compile that", caught.value.mend)
    assert code is not None
    names: dict[str, Any] = {"onnx_ir": ir, "path": path}
    exec(code[1], names)
    assert str(trace(names["model"]).graph.inputs[0].shape) == "[batch,8]"


def test_an_object_that_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="int"):
        trace(3)


def test_initializers_listed_as_inputs_by_the_old_format_are_no_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(oh.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3]))
    assert [value.name for value in trace(proto).graph.inputs] == ["x", "w"]
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    assert [value.name for value in trace(proto).graph.inputs] == ["x"]


def test_negative_sizes_become_unknown(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    shape = trace(proto).graph.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int)
    assert shape[1] == 4


def test_stack_traces_are_dropped_and_scopes_kept(proto: onnx.ModelProto) -> None:
    for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.name_scopes"):
        proto.graph.node[0].metadata_props.add(key=key, value="['', 'fc']")
    assert dict(trace(proto).graph[0].metadata_props) == {"pkg.torch.onnx.name_scopes": "['', 'fc']"}


def test_reading_onnx_does_not_import_torch(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    code = f"import sys; from qcompile.frontend import trace; trace({str(path)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def nested(depth: int) -> ir.Model:
    """An If in an If, `depth` deep, built from the inside: whoever walks it by recursion runs out of stack."""
    condition = ir.val("condition", ir.DataType.BOOL, [])

    def branch(inner: ir.Graph | None, level: int) -> ir.Graph:
        if inner is None:
            node = ir.node("Identity", [condition])
        else:
            node = ir.node("If", [condition], {"then_branch": inner, "else_branch": branch(None, level + depth)})
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = f"v{level}", ir.DataType.BOOL, ir.Shape([])
        return ir.Graph([], node.outputs, nodes=[node], name=f"g{level}")

    graph = branch(None, 0)
    for level in range(1, depth + 1):
        graph = branch(graph, level)
    graph.inputs.append(condition)
    graph.opset_imports[""] = 23
    return ir.Model(graph, ir_version=10)


def test_graphs_that_nest_too_deeply_are_refused_before_anything_walks_them():
    assert trace(nested(30)).graph.num_nodes() == 1
    for depth in (33, 5000):
        deep = nested(depth)
        start = time.process_time()
        with pytest.raises(UnsafeModelError, match="deeper than 32"):
            trace(deep)
        assert time.process_time() - start < 1


def test_graphs_that_nest_through_functions_are_refused():
    model = nested(20)
    condition = ir.val("given", ir.DataType.BOOL, [])
    body = nested(20).graph
    inner = body[0].attributes["then_branch"].as_graph()
    node = ir.node("If", [condition], {"then_branch": inner, "else_branch": nested(0).graph})
    function = ir.Function("own", "deep", "", graph=ir.Graph([condition], node.outputs, nodes=[node]), attributes=[])
    model.functions[function.identifier()] = function
    deepest = model.graph
    while deepest[0].op_type == "If":
        deepest = deepest[0].attributes["then_branch"].as_graph()
    deepest[0].domain, deepest[0].op_type = "own", "deep"
    with pytest.raises(UnsafeModelError, match="deeper than 32"):
        trace(model)


def test_a_name_that_is_not_utf_8_and_a_value_that_is_made_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { odd_name = Neg(x) y = Abs(%s) }'
    path.write_bytes(
        onnx.parser.parse_model(text % "odd_name").SerializeToString().replace(b"odd_name", b"odd_\xffame")
    )
    with pytest.raises(ModelError, match=r"is not valid ONNX \(the name b'odd_\\xffame' is not UTF-8\)") as caught:
        trace(path)
    assert caught.value.subject == str(path)
    twice = onnx.parser.parse_model(text % "x")
    twice.graph.node[0].output[0] = "y"
    path.write_bytes(twice.SerializeToString())
    with pytest.raises(ModelError, match="y: is the name of two values of graph"):
        trace(path)
