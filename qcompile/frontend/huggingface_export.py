"""From a configuration of transformers and its weights to the graph of a decoder, without ever building the model."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import PreTrainedModel

from qcompile.decoder_inputs import ABSENT
from qcompile.errors import ModelError, raise_interrupt
from qcompile.frontend import OPSET, PASSED_OVER
from qcompile.frontend.huggingface_checks import check_experts, check_positions, passed_over
from qcompile.frontend.huggingface_decoder import Decoder, attention_name
from qcompile.frontend.torch import forget_program, reason_of
from qcompile.frontend.torch_layer_names import name_layers
from qcompile.frontend.transformers_refusals import REFUSALS
from qcompile.graph import NAME_SCOPES, name_scopes
from qcompile.quiet import quiet

_BATCH, _SEQUENCE, _PAST = 2, 5, 7
"""Sizes of the example: all different, and none of them 1, which torch.export would take for a constant."""

_MODEL = "model."
"""Where `Decoder` keeps the model."""

_NO_DECODER = "Give a causal language model of transformers whose layers keep keys and values"

_OWN_ATTENTION = "its layers compute attention by themselves, not by the functions that transformers calls for others"
_WITHOUT_CACHE = (
    "Pass a torch.nn.Module that calls it with use_cache=False and returns the logits, and example_inputs: "
    "it is compiled without a cache"
)


def export_decoder(config: PreTrainedConfig, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """Return the decoder of a configuration with its cache as inputs and outputs, opset 23, not yet canonical.

    The modules are built without numbers, one number stands for each parameter in the trace, and the weights take
    their places afterwards: nothing is read, and a model of any size takes no memory.

    Inputs: input_ids, position_ids [batch, sequence] and attention_mask [batch, past + sequence], int64, and
    past_key_values.{layer}.key and .value [batch, heads, past, size], float32. Outputs: logits [batch, sequence,
    vocabulary], and present.{layer}.key and .value. See `decoder_inputs.complete` for those that feeds may leave out.

    Args:
        config: of a model that AutoModelForCausalLM knows.
        weights: float32, by the names of transformers' parameters; one that is tied to another may be absent.

    Raises:
        ModelError: transformers does not know the architecture, torch cannot trace it, a weight is missing or has
            another shape, or two that are tied differ.
        UnsupportedError: its layers choose among experts.
    """
    subject = f"architecture {config.model_type}"
    try:
        inputs, shapes = _example(config, len(weights))
    except REFUSALS as error:
        raise ModelError(subject, f"config.json gives no layers with keys and values: {error}", _NO_DECODER) from error
    check_positions(config)
    model = _built(config, subject)
    check_experts(model)
    named = _as_called_now(model, weights)
    over = passed_over(model, named)
    names = _Names(named, _stand_in(model), f"{model.base_model_prefix}.")
    found = _weights(model, names, subject)
    traced = _traced(model, config, (inputs, shapes), subject)
    _rename(traced)
    _bind(traced, names, found, subject)
    traced.meta[PASSED_OVER] = over
    return traced


def parameters(config: PreTrainedConfig, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, ir.TensorProtocol]:
    """Return the weights under the names of the `state_dict` of the model; what is not among them is left out.

    Args:
        config: as in `export_decoder`.
        weights: the same.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    model = _built(config, f"architecture {config.model_type}")
    names = _Names(_as_called_now(model, weights), {}, f"{model.base_model_prefix}.")
    found = {name: names.find(name) for name in model.state_dict()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _built(config: PreTrainedConfig, subject: str) -> PreTrainedModel:
    """Return the modules of a decoder, without numbers."""
    try:
        with quiet(), init_empty_weights(include_buffers=False):
            build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
            model = build(config, attn_implementation=attention_name())
            model.train(mode=False)
        model.tie_weights()
    except REFUSALS as error:
        raise _refusal(config, subject, f"transformers cannot build it: {error}") from error
    return model


def _refusal(config: PreTrainedConfig, subject: str, reason: str) -> ModelError:
    """Return what to say of a model that cannot be exported; the cache of those with own attention is out of reach."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or kind._supports_attention_backend:
        return ModelError(subject, reason, _NO_DECODER)
    return ModelError(subject, f"{_OWN_ATTENTION} ({reason})", _WITHOUT_CACHE)


def _as_called_now(model: PreTrainedModel, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, ir.TensorProtocol]:
    """Return the weights under the names that transformers uses now, where older files have others.

    Tensors that it would also join or cut, such as those of experts, keep their names, and are missing then.
    """
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    renamed = {}
    for name, tensor in weights.items():
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)  # noqa: PLW2901  # one after the other
        renamed[name] = tensor
    return renamed


@dataclasses.dataclass(frozen=True)
class _Names:
    """Weights, by every name that a parameter may have.

    Attributes:
        weights: by the names in the files.
        tied: all names of a parameter by any of them.
        prefix: of the model without its head; files that were saved without a head leave it out.
    """

    weights: Mapping[str, ir.TensorProtocol]
    tied: Mapping[str, tuple[str, ...]]
    prefix: str

    def find(self, parameter: str) -> ir.TensorProtocol | None:
        """Return the weight of a parameter or buffer; raises ModelError where its names have different ones."""
        names = (parameter, *self.tied.get(parameter, ()))
        every = dict.fromkeys((*names, *(name.removeprefix(self.prefix) for name in names)))
        found = [name for name in every if name in self.weights]
        for other in found[1:]:
            if not np.array_equal(self.weights[found[0]].numpy(), self.weights[other].numpy()):
                reason = f"config.json says that it is {other}, and their weights differ"
                raise ModelError(f"parameter {found[0]}", reason, 'Write "tie_word_embeddings": false into config.json')
        return self.weights[found[0]] if found else None


def _stand_in(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Put one zero, seen as the whole, in the place of each parameter; return all names of each by any of them."""
    places: dict[torch.nn.Parameter, list[tuple[torch.nn.Module, str, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name, f"{path}.{name}" if path else name))
    for parameter, found in places.items():
        zero = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        for module, name, _ in found:
            module._parameters[name] = zero
    return {full: tuple(each for _, _, each in found) for found in places.values() for _, _, full in found}


def _traced(
    model: torch.nn.Module, config: PreTrainedConfig, example: tuple[dict[str, Any], dict[str, Any]], subject: str
) -> ir.Model:
    inputs, shapes = example
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                Decoder(model),
                (),
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                verbose=False,
                optimize=False,  # it would fold the zeros that stand for the weights
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise_interrupt(error)
        raise _refusal(config, subject, f"torch cannot export it: {reason_of(error)}") from error
    assert program is not None
    traced: ir.Model = program.model
    if program.exported_program is not None:
        name_layers(traced, program.exported_program)
    forget_program(traced)
    _forget_wrapper(traced)
    return traced


def _forget_wrapper(traced: ir.Model) -> None:
    """Call layers and weights as transformers does, not as attributes of `Decoder`."""
    for node in traced.graph.all_nodes():
        if NAME_SCOPES in node.metadata_props:
            scopes = [str(scope).removeprefix(_MODEL) for scope in name_scopes(node)]
            node.metadata_props[NAME_SCOPES] = str(scopes)
    for name, value in list(traced.graph.initializers.items()):
        if name.startswith(_MODEL):
            value.name = name.removeprefix(_MODEL)


def _example(config: PreTrainedConfig, weights: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs to trace with, and their dynamic axes; raises ValueError for more layers than there are weights."""
    text = config.get_text_config(decoder=True)
    if not 0 < text.num_hidden_layers <= weights:
        raise ValueError(f"config.json states {text.num_hidden_layers} layers, and there are {weights} weights")
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # A tensor of its own for each input: torch takes those that are given twice for one.
    past = [[torch.zeros(_BATCH, heads, _PAST, size) for _ in range(2)] for _ in range(text.num_hidden_layers)]
    auto = torch.export.Dim.AUTO
    inputs = {
        "input_ids": torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
        "position_ids": torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64),
        "past_key_values": [(keys, values) for keys, values in past],
    }
    free = {0: auto, 1: auto}
    cache = {0: auto, 2: auto}
    shapes = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), free)
    return inputs, {**shapes, "past_key_values": [(cache, cache)] * text.num_hidden_layers}


def _rename(traced: ir.Model) -> None:
    """Call inputs, outputs and free dims as `export_decoder` says, and note which inputs may be left out."""
    inputs, outputs = traced.graph.inputs, traced.graph.outputs
    dims: dict[str, str] = {}
    names: list[tuple[str, str, tuple[str, ...]]] = [
        ("input_ids", "", ("batch", "sequence")),
        ("attention_mask", "ones", ("batch", "past + sequence")),
        ("position_ids", "positions", ("batch", "sequence")),
    ]
    for index in range((len(inputs) - 3) // 2):
        for part in ("key", "value"):
            names.append((f"past_key_values.{index}.{part}", "empty", ("batch", "", "past", "")))
    for value, (name, absent, called) in zip(inputs, names, strict=True):
        value.name = name
        if absent:
            value.metadata_props[ABSENT] = absent
        assert value.shape is not None
        dims.update((str(old), new) for old, new in zip(value.shape, called, strict=True) if new)
    for index, value in enumerate(outputs):
        value.name = "logits" if index == 0 else f"present.{(index - 1) // 2}.{('key', 'value')[(index - 1) % 2]}"
    for value in _values(traced):
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else _called(str(dim), dims) for dim in value.shape])


def _called(dim: str, dims: Mapping[str, str]) -> str:
    """Return an expression of torch's symbols, such as "s17 + s59", in our names; sums in the order of the mask's."""
    if dim in dims:
        return dims[dim]
    named = re.sub(r"\b[su]\d+\b", lambda symbol: dims.get(symbol[0], symbol[0]), dim)
    return "past + sequence" if named == "sequence + past" else named


def _values(traced: ir.Model) -> Iterator[ir.Value]:
    yield from traced.graph.inputs
    for node in traced.graph.all_nodes():
        yield from node.outputs


def _weights(model: torch.nn.Module, names: _Names, subject: str) -> dict[str, ir.TensorProtocol]:
    """Return the weight of each parameter or buffer that has one, before the model is traced, which may take minutes.

    Raises ModelError for one of another shape. Whether one that is missing matters, the traced graph tells.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for parameter, place in itertools.chain(model.named_parameters(), model.named_buffers()):
        weight = names.find(parameter)
        if weight is None:
            continue
        if tuple(weight.shape) != tuple(place.shape):
            reason = f"its weight has shape {list(weight.shape)} where {subject} has {list(place.shape)}"
            raise ModelError(f"parameter {parameter}", reason, "Give the config.json that belongs to the weights")
        found |= dict.fromkeys((parameter, *names.tied.get(parameter, ())), weight)
    return found


def _bind(traced: ir.Model, names: _Names, found: Mapping[str, ir.TensorProtocol], subject: str) -> None:
    """Put the weights in the places of the zeros; buffers that no file has, such as frequencies, are computed ones."""
    for name, value in traced.graph.initializers.items():
        if name in found:
            value.const_value = found[name]
        elif name in names.tied:
            raise ModelError(f"parameter {name}", f"there is no weight of {subject} for it", _NO_DECODER)
