"""The passes that bring any model to canonical form, in their order."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.block_functions import CODEBOOK, SCALE
from qcompile.graph import all_nodes, is_standard
from qcompile.passes.canonicalize_linears import CanonicalizeLinears
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.expand_rotary_caches import ExpandRotaryCaches
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_convolution_affine import FoldConvolutionAffine
from qcompile.passes.fold_weight_views import FoldWeightViews
from qcompile.passes.fuse_attention import FuseAttention
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_grouped_query_heads import FuseGroupedQueryHeads
from qcompile.passes.fuse_hard_swish import FuseHardSwish
from qcompile.passes.fuse_layer_normalization import FuseLayerNormalization
from qcompile.passes.fuse_rms_normalization import FuseRmsNormalization
from qcompile.passes.fuse_rotary_embedding import FuseRotaryEmbedding
from qcompile.passes.lower_gemms import LowerGemms
from qcompile.passes.materialize_reshapes import MaterializeReshapes
from qcompile.passes.order_operands import OrderOperands
from qcompile.passes.remove_neutral_operators import RemoveNeutralOperators
from qcompile.passes.resolve_auto_pads import ResolveAutoPads
from qcompile.passes.squeeze_scalars import SqueezeScalars
from qcompile.passes.unflatten_softmax import UnflattenSoftmax
from qcompile.qdq import DOMAIN, PER_BLOCK, PER_TOKEN
from qcompile.unused_nodes import RemoveUnusedNodes


class EliminateIdentities(ir.passes.InPlacePass):
    """Identity(x) -> x.

    onnx_ir's own pass also takes away the Identity that makes the output of a branch of an If from a value of the graph
    around it, or one of two outputs from the other, and leaves an output that no node makes. Here an Identity whose
    output is a graph output goes only where its input is made in the same graph and is no output itself; it then takes
    over the name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take away every Identity of the main graph and its subgraphs that nothing needs."""
        found = [node for node in all_nodes(model) if is_standard(node, "Identity")]
        modified = False
        for node in found:
            if _is_removable(node):
                _remove(node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_removable(node: ir.Node) -> bool:
    x, output = node.inputs[0], node.outputs[0]
    if x is None or not output.is_graph_output():
        return x is not None
    producer = x.producer()
    return producer is not None and producer.graph is node.graph and not x.is_graph_output()


def _remove(node: ir.Node) -> None:
    x, output, graph = node.inputs[0], node.outputs[0], node.graph
    assert x is not None
    assert graph is not None
    is_output = output.is_graph_output()
    declared, made = (output.shape, x.shape) if is_output else (x.shape, output.shape)
    x.shape, x.type = declared if declared is not None else made, x.type or output.type
    ir.convenience.replace_all_uses_with(output, x, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        x.name = output.name


def _is_foreign(function: ir.Function) -> bool:
    """True for every function but the words of the quantized graph, which backends know."""
    return function.identifier() not in {(DOMAIN, name, "") for name in (PER_TOKEN, PER_BLOCK, CODEBOOK, SCALE)}


def canonical_passes(runs: Callable[[ir.Model], bool] | None = None) -> list[ir.passes.PassBase]:
    """One graph, constants as initializers, opset 23, linears in one form, composite operators recognised.

    Args:
        runs: tells whether the reference runtime takes a model, see `ConvertOpset`.
    """
    return [
        common.InlinePass(criteria=_is_foreign),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        ConvertOpset(runs=runs),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.ShapeInferencePass(strict_mode=False),
        FoldConstants(),
        RemoveNeutralOperators(),
        MaterializeReshapes(),
        FoldWeightViews(),
        EliminateIdentities(),
        common.CommonSubexpressionEliminationPass(),
        LowerGemms(),
        CanonicalizeLinears(),
        RemoveUnusedNodes(),
        SqueezeScalars(),
        UnflattenSoftmax(),
        OrderOperands(),
        FuseLayerNormalization(),
        FuseRmsNormalization(),
        FuseGelu(),
        FuseHardSwish(),
        ResolveAutoPads(),
        FoldConvolutionAffine(),
        FuseAttention(),
        FuseRotaryEmbedding(),
        FuseGroupedQueryHeads(),
        common.ShapeInferencePass(strict_mode=False),
        common.CommonSubexpressionEliminationPass(),
        ExpandRotaryCaches(),
        common.CommonSubexpressionEliminationPass(),
        RemoveUnusedNodes(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.ShapeInferencePass(strict_mode=False),
    ]
