"""A decoder whose cache lies in memory that two compiled forms of it share: one for prompts, one for a token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.backends.greedy import GreedyDecoder
from qcompile.backends.openvino.patterns import LAYOUT_ONLY
from qcompile.backends.openvino.runtime import core, openvino, opset, runtime_errors
from qcompile.backends.openvino.session import DEVICE, refused
from qcompile.errors import InputError
from qcompile.session import check_threads

if TYPE_CHECKING:
    import openvino as ov

_CACHES = ("key_cache.", "value_cache.")
"""How the names of the inputs begin that OpenVINO makes of the states of a model with paged attention."""

_LENGTHS = {"input_ids": 1, "position_ids": 1, "past_lens": 1, "subsequence_begins": 2, "block_indices_begins": 2}
"""Inputs of the form for one token of one sequence, and how many numbers each has."""

_KEYS = {"KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
"""Each key is rounded once. OpenVINO's own choice rounds 32 tokens of a channel together, those before anew for each
token: attention over 1,000 tokens takes it 2.2 instead of 1.9 ms (30 layers, 2026.4); the losses are alike."""


@dataclasses.dataclass
class PagedDecoder(GreedyDecoder):
    """Continues one sequence of tokens, over caches in pages.

    Attributes:
        many: request of the form for any number of tokens.
        one: request of the form for one token; the same caches.
        ports: inputs of both: without rotary embeddings there may be no positions.
        room: tokens that they can hold.
    """

    many: ov.InferRequest
    one: ov.InferRequest
    ports: dict[str, ov.ConstOutput]
    room: int = 0

    def logits(self, new: Sequence[int]) -> np.ndarray:
        """Read tokens behind those that were read, and return the logits of the last, float32 [vocabulary].

        Raises InputError where OpenVINO refuses them: no token of that number, or no memory.
        """
        request = self.one if len(new) == 1 else self.many
        past, count = len(self.read), len(self.read) + len(new)
        self._make_room(count)
        given: dict[str, np.ndarray] = {
            "input_ids": np.array(new, np.int64),
            "position_ids": np.arange(past, count),
            "past_lens": np.array([past], np.int32),
            "subsequence_begins": np.array([0, len(new)], np.int32),
            "max_context_len": np.array(count, np.int32),
        }
        for name, array in given.items():
            if name in self.ports:
                request.set_tensor(name, openvino().Tensor(array))
        try:
            request.infer()
        except runtime_errors() as error:
            raise InputError(f"{count} tokens", f"OpenVINO refuses them: {error}", "Give fewer") from error
        self.read += new
        logits: np.ndarray = request.get_output_tensor(0).data[-1].reshape(-1)
        return logits

    def _make_room(self, count: int) -> None:
        """Let the caches hold so many tokens, and up to as many again, with what is in them."""
        if count <= self.room:
            return
        caches = {name: port.get_partial_shape() for name, port in self.ports.items() if name.startswith(_CACHES)}
        size = min(shape[2].get_length() for shape in caches.values())  # without scales, which may be further rows
        wanted = max(count, min(2 * count, self.context_length))
        filled, blocks = -(-len(self.read) // size), -(-wanted // size)
        for name, (_, *sizes) in caches.items():
            shape = [blocks, *(each.get_length() for each in sizes)]
            cache = openvino().Tensor(self.ports[name].get_element_type(), openvino().Shape(shape))
            if filled:
                ends = [[0] * 4, [filled, *shape[1:]]]
                old, begin = (openvino().Tensor(each, *ends) for each in (self.many.get_tensor(name), cache))
                old.copy_to(begin)
            for request in (self.many, self.one):
                request.set_tensor(name, cache)
        for request in (self.many, self.one):
            request.set_tensor("block_indices", openvino().Tensor(np.arange(blocks, dtype=np.int32)))
            request.set_tensor("block_indices_begins", openvino().Tensor(np.array([0, blocks], np.int32)))
        self.room = blocks * size


def open_paged(model: ov.Model, *, threads: int | None, context_length: int, **properties: Any) -> PagedDecoder:
    """Load a model that `lower_generator` wrote with OpenVINO's paged attention, for which `attends_to_all_before`.

    A fifth of the time of a token of SmolLM2 are shapes that OpenVINO computes anew for each of its operators, and
    copies that it makes where it does not know them (8.4 and 6.7 ms, 2 threads, 2026.4): a second form knows that there
    is one token. It holds the weights once more, as OpenVINO arranges them for its kernels.

    Args:
        model: it is changed.
        threads: number of threads within the model; None leaves it to OpenVINO.
        context_length: most tokens of a sequence.
        properties: of OpenVINO, for both forms.

    Raises:
        ModelError: OpenVINO refuses the model.
        RecipeError: a wrong number of threads.
    """
    from openvino._offline_transformations import paged_attention_transformation

    check_threads(threads)
    settings = {"PERFORMANCE_HINT": "LATENCY", **_KEYS, **properties}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        paged_attention_transformation(model)
        _keep_last(model)
        many = core().compile_model(model, DEVICE, settings)
        for parameter in model.get_parameters():
            length = _LENGTHS.get(parameter.output(0).any_name)
            if length is not None:
                parameter.set_partial_shape(openvino().PartialShape([length]))
        model.validate_nodes_and_infer_types()
        one = core().compile_model(model, DEVICE, settings)
        ports = {port.any_name: port for port in many.inputs}
        return PagedDecoder(context_length, many.create_infer_request(), one.create_infer_request(), ports)
    except runtime_errors() as error:
        raise refused("model with paged attention", error) from error


def _keep_last(model: ov.Model) -> None:
    """MatMul(x [tokens, 1, width], W)  ->  MatMul(last of x, W), of the linear that makes the logits by itself."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() in LAYOUT_ONLY:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "MatMul" and node.input_value(0).get_partial_shape().rank == 3:
        last = opset().gather(node.input_value(0), np.array([-1]), np.int64(0))
        node.input(0).replace_source_output(last.output(0))
        model.validate_nodes_and_infer_types()
