"""ExpandRotaryCaches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, is_standard, layer_name


@dataclasses.dataclass(frozen=True)
class ExpandRotaryCaches(Pass):
    """RotaryEmbedding(x, cos, sin) with one cos and sin for the whole batch -> the same with a row for each sample.

    The operator wants [batch, sequence, head_size / 2] where no position_ids are given. torch's exporter and the
    fusion rules leave a batch of 1 to be broadcast, which OpenVINO accepts and ONNX Runtime refuses. Does not fire
    where position_ids index the caches, nor where the batch is the same already.
    """

    looks_for: ClassVar[str] = "RotaryEmbedding without position_ids whose caches have a batch of 1"

    def call(self, model: ir.Model) -> Result:
        """Insert one Expand per cache and batch; a cache that several nodes share is expanded once."""
        expanded: dict[tuple[ir.Value, object], ir.Value] = {}
        findings = []
        for node in list(all_nodes(model)):
            if not is_standard(node, "RotaryEmbedding") or (len(node.inputs) > 3 and node.inputs[3] is not None):
                continue
            x, *caches = node.inputs[:3]
            if x is None or x.shape is None or x.shape[0] == 1:
                continue
            broadcast = [index for index, cache in enumerate(caches, start=1) if _has_batch_of_one(cache)]
            for index in broadcast:
                cache = node.inputs[index]
                assert cache is not None
                key = (cache, x.shape[0] if str(x.shape[0]) != "None" else x)
                if key not in expanded:
                    expanded[key] = _expand(node, cache, x)
                node.replace_input_with(index, expanded[key])
            if broadcast:
                findings.append(Finding(layer_name(node), "converted", "caches expanded to the batch"))
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _has_batch_of_one(cache: ir.Value | None) -> bool:
    return cache is not None and cache.shape is not None and len(cache.shape) == 3 and cache.shape[0] == 1


def _expand(before: ir.Node, cache: ir.Value, x: ir.Value) -> ir.Value:
    """Insert Expand(cache, [batch of x, 1, 1]) in front of the node."""
    graph = before.graph
    assert graph is not None
    assert cache.shape is not None
    assert x.shape is not None
    ones = ir.tensor([1, 1], ir.DataType.INT64, name=f"{cache.name}_ones")
    tail = ir.Value(name=ones.name, shape=ir.Shape([2]), type=ir.TensorType(ones.dtype), const_value=ones)
    graph.initializers[f"{cache.name}_ones"] = tail
    tape = ir.tape.Tape()
    batch = tape.op("Shape", [x], {"start": 0, "end": 1})
    shape = tape.op("Concat", [batch, tail], {"axis": 0})
    result = tape.op("Expand", [cache, shape])
    result.shape, result.type = ir.Shape([x.shape[0], *cache.shape[1:]]), cache.type
    for value, suffix in ((batch, "batch"), (shape, "batch_shape"), (result, "batched")):
        value.name = f"{cache.name}_{suffix}"
    for node in tape.nodes:
        node.name = f"{node.outputs[0].name}_node"
    graph.insert_before(before, tape.nodes)
    return result
