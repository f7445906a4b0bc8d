"""Whether a model computes the same twice: asked before a pass is blamed for what differs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import ModelError
from qcompile.graph import RANDOM, all_nodes, is_standard, layer_name
from qcompile.outputs import without_padding
from qcompile.session import Feed, OpenSession
from qcompile.verify import EXACT_TOLERANCE, difference, run_all

_MEND = (
    "Export it in evaluation mode, module.eval(), or give random numbers as an input; or pass verify=False "
    "(--no-verify), without which nothing can be compared"
)


def refuse_random(
    model: ir.Model, samples: Sequence[Feed], masks: Sequence[PaddingMask], open_session: OpenSession
) -> None:
    """Run a model twice on the same inputs, and raise ModelError where its outputs differ by more than rounding.

    In one session: a runtime may begin each with the same random numbers. Does not tell of a model whose every run is
    the same.

    Args:
        model: not changed.
        samples: inputs.
        masks: inputs that mark padding, which does not count.
        open_session: the runtime.

    Raises:
        ModelError: they differ; names the operator that draws random numbers, where there is one.
    """
    session = open_session(model)
    found = difference(*(without_padding(run_all(session, samples), samples, masks) for _ in range(2)))
    if found.relative <= EXACT_TOLERANCE:
        return
    node = next((node for node in all_nodes(model) if _draws(node)), None)
    cause = "" if node is None else f": {node.op_type} of {layer_name(node)} draws random numbers"
    reason = f"differs by {found.relative:.2g} of its range between two runs on the same inputs{cause}"
    raise ModelError(f"output {found.output}", reason, _MEND)


def _draws(node: ir.Node) -> bool:
    in_training = is_standard(node, "Dropout") and len(node.inputs) > 2 and node.inputs[2] is not None
    return in_training or is_standard(node, *RANDOM)
