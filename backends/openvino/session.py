"""A model that is loaded in OpenVINO."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qcompile.backends.feeds import Declared, check_feed
from qcompile.backends.openvino.runtime import core, openvino, runtime_errors
from qcompile.errors import InputError, ModelError
from qcompile.session import Feed, check_threads

if TYPE_CHECKING:
    import openvino as ov

Precision = Literal["f32", "bf16"]

DEVICE = "CPU"
# What the ONNX front end appends to the name of an output to name its Result node. The tensor names of the port are
# those of every value that was merged with it, also of another output.
RESULT = "/sink_port_0"
GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


@dataclasses.dataclass(frozen=True)
class OpenVinoSession:
    """Runs feeds on the CPU, after it has checked them. Not for two threads at once.

    Attributes:
        compiled: the loaded model.
        request: its one inference request.
        input_names: name of each input, in order. A port of `compiled` may have more names: those of the values that
            the plugin merged with it.
        output_names: name of each output, in order.
    """

    compiled: ov.CompiledModel
    request: ov.InferRequest
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array.

        Raises InputError for a missing or unknown input, for a type or shape that is not the input's, and when a
        kernel refuses the values.
        """
        ports = zip(self.input_names, self.compiled.inputs, strict=True)
        check_feed(feed, {name: _declared(port) for name, port in ports})
        tensors = {
            index: np.ascontiguousarray(feed[name]).reshape(feed[name].shape)
            for index, name in enumerate(self.input_names)
        }
        try:
            self.request.infer(tensors, share_inputs=True)
        except runtime_errors() as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise InputError(f"feed of {shapes}", f"OpenVINO refuses it: {error}", "Check the shapes") from error
        names = enumerate(self.output_names)
        return {name: self.request.get_output_tensor(index).data.copy() for index, name in names}


def load(
    model: ov.Model,
    subject: str,
    *,
    threads: int | None = None,
    precision: Precision = "f32",
    group_size: int | None = None,
) -> OpenVinoSession:
    """Compile a model for the CPU; raises ModelError when OpenVINO refuses it, RecipeError for a wrong `threads`.

    Args:
        model: the model; it is not changed.
        subject: how the user knows the model, for the error.
        threads: number of threads within the model; None leaves it to OpenVINO.
        precision: what OpenVINO computes float operators in. Its own default is bf16 on the CPUs that have it.
        group_size: consecutive input channels of a linear with 8-bit weights whose activations share a scale at run
            time; 0 leaves activations float; None takes what the model says.
    """
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    check_threads(threads)
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    if group_size is not None:
        properties[GROUP_SIZE] = str(group_size)
    try:
        compiled = core().compile_model(model, DEVICE, properties)
        inputs, outputs = (tuple(map(_name, ports)) for ports in (model.inputs, model.outputs))
        return OpenVinoSession(compiled, compiled.create_infer_request(), inputs, outputs)
    except runtime_errors() as error:
        raise refused(subject, error) from error


def refused(subject: str, error: Exception) -> ModelError:
    """Return the error for a model that OpenVINO does not read or compile."""
    mend = "Check the model with onnx.checker; if it is valid, this is a gap of the runtime or of its lowering"
    return ModelError(subject, f"OpenVINO {openvino().__version__} refuses it: {error}", mend)


def _name(port: ov.Output) -> str:
    """Return the name that the user knows an input or output by.

    A model that is written gives a number to the name of a node that has the name of another, in the branch of an If
    too; the names of tensors, of which a port may have several, stay.
    """
    name = str(port.get_node().get_friendly_name())
    before, mark, _ = name.rpartition(RESULT)
    name = before if mark else name
    return name if name in port.get_names() else max(filter(name.startswith, port.get_names()), key=len, default=name)


def _declared(port: ov.ConstOutput) -> Declared:
    shape = port.get_partial_shape()
    sizes = None if shape.rank.is_dynamic else [None if size.is_dynamic else size.get_length() for size in shape]
    kind = port.get_element_type()
    # OpenVINO calls bfloat16 a float16 of numpy; texts crash it (2026.4).
    return Declared(None if kind.get_type_name() in ("bf16", "string") else kind.to_dtype().name, sizes)
