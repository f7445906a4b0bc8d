"""The passes that bring any model to canonical form, in their order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.passes.canonicalize_linears import CanonicalizeLinears
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.expand_rotary_caches import ExpandRotaryCaches
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_weight_views import FoldWeightViews
from qcompile.passes.fuse_attention import FuseAttention
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_grouped_query_heads import FuseGroupedQueryHeads
from qcompile.passes.fuse_layer_normalization import FuseLayerNormalization
from qcompile.passes.fuse_rms_normalization import FuseRmsNormalization
from qcompile.passes.fuse_rotary_embedding import FuseRotaryEmbedding
from qcompile.passes.lower_gemms import LowerGemms
from qcompile.passes.order_operands import OrderOperands
from qcompile.passes.squeeze_scalars import SqueezeScalars
from qcompile.passes.unflatten_softmax import UnflattenSoftmax


def canonical_passes() -> list[ir.passes.PassBase]:
    """One graph, constants as initializers, opset 23, linears in one form, composite operators recognised."""
    return [
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        ConvertOpset(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.ShapeInferencePass(strict_mode=False),
        FoldConstants(),
        FoldWeightViews(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        LowerGemms(),
        CanonicalizeLinears(),
        common.RemoveUnusedNodesPass(),
        SqueezeScalars(),
        UnflattenSoftmax(),
        OrderOperands(),
        FuseLayerNormalization(),
        FuseRmsNormalization(),
        FuseGelu(),
        FuseAttention(),
        FuseRotaryEmbedding(),
        FuseGroupedQueryHeads(),
        common.ShapeInferencePass(strict_mode=False),
        common.CommonSubexpressionEliminationPass(),
        ExpandRotaryCaches(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.ShapeInferencePass(strict_mode=False),
    ]
