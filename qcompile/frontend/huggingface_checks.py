"""What a configuration and its weights say, and a decoder that is exported once does not do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from qcompile.errors import ModelError, UnsupportedError


def check_positions(config: PreTrainedConfig) -> None:
    """Raise ModelError for rotary positions whose frequencies change as a text grows: a graph has one set of them.

    That is the scaling that transformers calls "dynamic"; up to max_position_embeddings tokens it scales nothing
    (`modeling_rope_utils._compute_dynamic_ntk_parameters`).
    """
    for kind in _scalings(getattr(config.get_text_config(decoder=True), "rope_parameters", None)):
        if "dynamic" in kind:
            reason = f"its rope_type is {kind!r}: frequencies change as a text grows, and a graph has one set"
            mend = 'Write "rope_type": "default" there: up to max_position_embeddings tokens it computes the same'
            raise ModelError("rope_scaling (rope_parameters) of config.json", reason, mend)


def _scalings(parameters: Any) -> Iterator[str]:
    """Yield the types of scaling: the parameters are those of all layers, or some for each kind of layer."""
    if isinstance(parameters, Mapping):
        if "rope_type" in parameters:
            yield str(parameters["rope_type"])
        for part in parameters.values():
            yield from _scalings(part)


def check_experts(model: PreTrainedModel) -> None:
    """Raise UnsupportedError for layers that choose among experts for each token, before it is traced.

    transformers computes them by products whose sizes depend on the data, or by weights gathered for each token, and
    its files have a matrix for each expert where its modules have one tensor for all. Known by what its decorator
    `use_experts_implementation` gives the modules.
    """
    experts = [name for name, module in model.named_modules() if hasattr(type(module), "_apply_gate")]
    if experts:
        reason = f"{experts[0]} chooses among experts for each token, and no graph of that is exported yet"
        raise UnsupportedError(f"architecture {model.config.model_type}", reason, "Give a model without experts")


def passed_over(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the names of weights that no parameter of a model takes, as transformers' loader does.

    Not those of buffers that older files have: what the model says to ignore, and what a buffer of its is called, with
    the module that holds it.

    Args:
        model: the modules, with or without numbers.
        names: of the weights, as the model calls them now, with its prefix or without.
    """
    prefix = f"{model.base_model_prefix}."
    known = {name.removeprefix(prefix) for name in model.state_dict()}
    computed = tuple(f".{'.'.join(name.split('.')[-2:])}" for name, _ in model.named_buffers())
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    return [
        name
        for name in names
        if name.removeprefix(prefix) not in known
        and not f".{name}".endswith(computed)
        and not any(pattern.search(name) for pattern in ignored)
    ]
