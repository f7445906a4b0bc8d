"""ResolveAutoPads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, is_standard, layer_name


@dataclasses.dataclass(frozen=True)
class ResolveAutoPads(Pass):
    """ConvTranspose with auto_pad or output_shape -> the same with the pads that they come to.

    SAME_UPPER and SAME_LOWER make the output as large as the input times the stride, so that the pads follow from the
    kernel alone. OpenVINO gives another shape where the size of the input is dynamic, and other values for SAME_UPPER
    with an output_shape. The arithmetic is that of the operator's definition, where less than nothing to crop is
    nothing, as in ONNX Runtime.

    Does not fire where the kernel is not known, nor where the output_shape is given of an input of unknown size or is
    larger than what the input reaches. Convolutions stay: every runtime resolves theirs.
    """

    looks_for: ClassVar[str] = "ConvTranspose with auto_pad or output_shape"

    def call(self, model: ir.Model) -> Result:
        """Write the pads, in the graph and in the branches of its Ifs."""
        findings = []
        for node in all_nodes(model):
            pads = _pads(node) if is_standard(node, "ConvTranspose") else None
            if pads is None:
                continue
            for name in ("auto_pad", "output_shape"):
                node.attributes.pop(name, None)
            node.attributes["pads"] = ir.AttrInt64s("pads", pads)
            findings.append(Finding(layer_name(node), "converted", f"its pads are {pads}"))
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _pads(node: ir.Node) -> list[int] | None:
    """Return the pads in front of all axes and then behind them; None where they are not asked for, or not known."""
    kernel = _spatial(node.inputs[1])
    if kernel is None:
        return None
    rank, auto_pad = len(kernel), node.attributes.get_string("auto_pad", "NOTSET")
    strides = node.attributes.get_ints("strides", (1,) * rank)
    reach = _reach(node, kernel)
    sizes = node.attributes.get_ints("output_shape", ())
    if sizes:
        whole = _whole(node, strides, reach)
        if whole is None or any(size > n for size, n in zip(sizes[-rank:], whole, strict=True)):
            return None
        totals = [n - size for size, n in zip(sizes[-rank:], whole, strict=True)]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, each - stride) for each, stride in zip(reach, strides, strict=True)]
    elif auto_pad == "VALID":
        totals = [0] * rank
    else:
        return None
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*smaller, *larger] if auto_pad == "SAME_UPPER" else [*larger, *smaller]


def _spatial(value: ir.Value | None) -> list[int] | None:
    """Return the sizes behind the first two axes; None where one is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in value.shape[2:] if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape[2:]) else None


def _reach(node: ir.Node, kernel: Sequence[int]) -> list[int]:
    """Return how many outputs of each axis the last input makes, with the output_padding behind them."""
    spread = node.attributes.get_ints("dilations", (1,) * len(kernel))
    more = node.attributes.get_ints("output_padding", (0,) * len(kernel))
    return [(size - 1) * each + 1 + extra for size, each, extra in zip(kernel, spread, more, strict=True)]


def _whole(node: ir.Node, strides: Sequence[int], reach: Sequence[int]) -> list[int] | None:
    """Return the size of each axis of the output before it is cropped; None where that of the input is dynamic."""
    sizes = _spatial(node.inputs[0])
    return None if sizes is None else [(n - 1) * s + r for n, s, r in zip(sizes, strides, reach, strict=True)]
