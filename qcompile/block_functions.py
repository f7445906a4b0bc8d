"""The words of weights in blocks that ONNX has no operators for: activations rounded in blocks, and codebooks.

Each is a function of the domain `qcompile` with a body of standard operators, which any runtime can run.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.errors import UnsupportedError
from qcompile.graph import Names, layer_name
from qcompile.qdq import DOMAIN, PER_BLOCK, ROUNDING_CONSTANTS, rounding

CODEBOOK = "DequantizeCodebook"
SCALE = "DequantizeScale"

_OPSET = 21
"""Lowest opset with integers of 4 bits."""

_HEADER = f"""
<ir_version: 10, opset_import: ["" : {_OPSET}, "{DOMAIN}" : 1]>
graph (float[n] x) => (float[n] y) {{ y = Identity(x) }}
<domain: "{DOMAIN}", opset_import: ["" : {_OPSET}]>
"""

_BODIES = {
    PER_BLOCK: f"""
{PER_BLOCK} <block_size> (x) => (y) {{
    first = Constant <value = int64[1] {{0}}> (){ROUNDING_CONSTANTS}
    size = Constant <value_int: int = @block_size> ()
    block = Unsqueeze (size, first)
    lead = Shape <end = -1> (x)
    width = Shape <start = -1> (x)
    negative = Neg (width)
    missing = Mod (negative, block)
    filled = Add (width, missing)
    count = Div (filled, block)
    pads = Concat <axis = 0> (first, missing)
    padded = Pad (x, pads, zero, last)
    split = Concat <axis = 0> (lead, count, block)
    blocks = Reshape <allowzero = 1> (padded, split){rounding("blocks", "values")}
    joined = Concat <axis = 0> (lead, filled)
    whole = Reshape <allowzero = 1> (values, joined)
    y = Slice (whole, first, width, last)
}}
""",
    CODEBOOK: """
DequantizeCodebook <axis, block_size> (indices, codebook, scale) => (y) {
    start = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    dimension = Constant <value_int: int = @axis> ()
    block = Constant <value_int: int = @block_size> ()
    places = Cast <to = 6> (indices)
    shape = Shape (places)
    size = Gather (shape, dimension)
    positions = Range (start, size, one)
    blocks = Div (positions, block)
    scales = Gather <axis: int = @axis> (scale, blocks)
    levels = Gather (codebook, places)
    y = Mul (levels, scales)
}
""",
    SCALE: """
DequantizeScale <block_size> (indices, codebook, scale, offset) => (y) {
    start = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    flat = Constant <value = int64[1] {-1}> ()
    block = Constant <value_int: int = @block_size> ()
    turned = Transpose <perm = [1, 0]> (indices)
    shape = Shape (turned)
    size = Size (turned)
    positions = Range (start, size, one)
    blocks = Div (positions, block)
    scales = Gather (scale, blocks)
    places = Cast <to = 6> (turned)
    levels = Gather (codebook, places)
    row = Reshape (levels, flat)
    scaled = Mul (row, scales)
    shifted = Add (scaled, offset)
    matrix = Reshape (shifted, shape)
    y = Transpose <perm = [1, 0]> (matrix)
}
""",
}


def function(name: str, opset: int) -> ir.Function:
    """Return one of the functions, of an opset from 21 on; the definitions of its operators are the same.

    QuantizeDequantizePerBlock(x; block_size): float [..., channels] as symmetric int8, with the scale max|x| / 127 for
    each block of channels of a token, 1 where all are zero. Channels behind the last whole block are a smaller one.

    DequantizeCodebook(indices, codebook, scale; axis, block_size): codebook[indices] * scale, with a scale for each
    block along the axis, from 0 on; the last block may be smaller. indices are UINT4 or UINT8 of any shape, codebook
    float [levels], scale float of the shape of indices but for the number of blocks. NF4: Dettmers et al. 2023,
    "QLoRA", section 3.

    DequantizeScale(indices, codebook, scale, offset; block_size): the scales [blocks, outputs] of such a weight, where
    they are quantized themselves ("double quantization", the same section): codebook[indices] * scale + offset, with a
    scale for each so many, counted output by output.
    """
    made = ir.from_onnx_text(_HEADER + _BODIES[name]).functions[(DOMAIN, name, "")]
    made.opset_imports[""] = opset
    return made


def call(model: ir.Model, name: str, inputs: list[ir.Value], before: ir.Node, **attributes: int) -> ir.Value:
    """Write a call of one of the functions in front of a node, and the function into the model; return its value.

    Its name comes from that of the first input; the caller sets shape and type.

    Raises:
        UnsupportedError: the model is below opset 21.
    """
    opset = model.opset_imports[""]
    if opset < _OPSET:
        reason = f"{name} needs opset {_OPSET} or later, and the model could not be converted from opset {opset}"
        raise UnsupportedError(f"layer {layer_name(before)}", reason, f"Export the model with opset {_OPSET} or later")
    if (DOMAIN, name, "") not in model.functions:
        made = function(name, opset)
        model.functions[made.identifier()] = made
        model.opset_imports[DOMAIN] = 1
    assert isinstance(before.graph, ir.Graph)
    names = Names(before.graph)
    node = ir.node(name, inputs, attributes, domain=DOMAIN, name=names.new(f"{inputs[0].name}.{name}"))
    node.outputs[0].name = names.new(f"{node.name}.value")
    before.graph.insert_before(before, node)
    return node.outputs[0]


def round_in_blocks(model: ir.Model, value: ir.Value, block_size: int, before: ir.Node) -> ir.Value:
    """Write x -> QuantizeDequantizePerBlock(x) in front of a node, and return the rounded value.

    Raises:
        UnsupportedError: the model is below opset 21.
    """
    rounded = call(model, PER_BLOCK, [value], before, block_size=block_size)
    rounded.shape, rounded.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    return rounded


def rounded_in_blocks(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Return what is rounded to 8 bits in blocks to make the value, and the size of the blocks; None: it is not."""
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, PER_BLOCK) or node.inputs[0] is None:
        return None
    return node.inputs[0], node.attributes.get_int("block_size", 0)
