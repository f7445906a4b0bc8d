"""The way from the portable graph of a decoder to a folder that openvino_genai opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends.decoder_caches import Cache, find_caches
from qcompile.backends.openvino.activations import quantize_at_run_time
from qcompile.backends.openvino.cached_attention import attend_to_states
from qcompile.backends.openvino.caches import keep_caches, measure_caches_whole
from qcompile.backends.openvino.compression import compress_weights
from qcompile.backends.openvino.conversion import converted
from qcompile.backends.openvino.decompression import expanded_when_loaded
from qcompile.backends.openvino.joined_heads import rotate_together
from qcompile.backends.openvino.joined_linears import join_linears
from qcompile.backends.openvino.lowering import save
from qcompile.backends.openvino.minimums import lower_minimums
from qcompile.backends.openvino.runtime import core, runtime_errors
from qcompile.backends.openvino.session import GROUP_SIZE, OpenVinoSession, Precision, load, refused
from qcompile.backends.openvino.stateful_session import StatefulSession
from qcompile.backends.openvino.vectors import keep_vectors_in_float
from qcompile.backends.openvino.zero_points import fold_zero_points
from qcompile.contract import Finding
from qcompile.unused_nodes import RemoveUnusedNodes

if TYPE_CHECKING:
    import openvino as ov

MODEL_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"

_CACHES = ["qcompile", "caches"]
"""Where the model says which states are which inputs and outputs of the portable graph."""


def lower_generator(model: ir.Model, folder: Path) -> tuple[Finding, ...]:
    """Write openvino_model.xml and .bin, which keep the cache in states, into an existing folder.

    Inputs: those of the model without its cache, and beam_idx int32 [batch]; outputs: those without the cache. `model`
    is not changed. The files carry the group size in which the activations of linears with weights in blocks are
    rounded at run time; 0 where the recipe rounds none.

    Returns what stayed float, and why. Raises UnsupportedError for a model without a cache.
    """
    model = model.clone()
    for node in model.graph:
        node.name = node.name or node.outputs[0].name
    common.NameFixPass()(model)
    caches = find_caches(model)
    measure_caches_whole(model, caches)
    vectors = keep_vectors_in_float(model)
    group_size, findings = quantize_at_run_time(model)
    findings += expanded_when_loaded(model)
    fold_zero_points(model)
    join_linears(model)
    rotate_together(model)
    RemoveUnusedNodes()(model)
    with converted(model) as result:
        keep_caches(result, caches)
        attend_to_states(result)
        compress_weights(result)
        lower_minimums(result)
        result.validate_nodes_and_infer_types()
        result.set_rt_info(str(group_size), ["runtime_options", GROUP_SIZE])
        result.set_rt_info(json.dumps([[cache.past, cache.present] for cache in caches]), _CACHES)
        save(result, folder / MODEL_FILE)
    return findings + vectors


def open_generator(
    path: Path, *, threads: int | None = None, precision: Precision = "f32", cache_precision: str = "f32"
) -> StatefulSession:
    """Load a written model so that it takes its cache from the feed and returns it.

    Args:
        path: of openvino_model.xml.
        threads: number of threads within the model; None leaves it to OpenVINO.
        precision: of the float operators.
        cache_precision: in which OpenVINO keeps keys and values: "f32", or "u8", which it takes by itself.

    Raises:
        ModelError: OpenVINO refuses the file.
    """
    try:
        model = core().read_model(path)
    except runtime_errors() as error:
        raise refused(f"model {path.name}", error) from error
    keep_cache_precise(model, cache_precision)
    session = load(model, f"model {path.name}", threads=threads, precision=precision)
    return with_caches(session, model)


def keep_cache_precise(model: ov.Model, cache_precision: str = "f32") -> None:
    """Let a model keep keys and values in this type when it is loaded: "f32", or "u8", as OpenVINO does by itself."""
    model.set_rt_info(cache_precision, ["runtime_options", "KV_CACHE_PRECISION"])


def with_caches(session: OpenVinoSession, model: ov.Model) -> StatefulSession:
    """Return a session of a model that `lower_generator` wrote, so that it takes its cache from the feed."""
    said = json.loads(model.get_rt_info(_CACHES).astype(str))
    return StatefulSession(session, tuple(Cache(past, present) for past, present in said))
