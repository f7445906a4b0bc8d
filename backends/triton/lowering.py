"""The way from the portable graph to an artifact, and from there to what torch runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

import qcompile.backends.triton.convolution_operators
import qcompile.backends.triton.operators  # noqa: F401 - these fill the table
from qcompile.backends.onnx_files import expose, write
from qcompile.backends.triton.codebook_linears import fuse_codebook_linears
from qcompile.backends.triton.gates import fuse_gates
from qcompile.backends.triton.grouped_linears import fuse_grouped_linears
from qcompile.backends.triton.integer_convolutions import fuse_integer_convolutions
from qcompile.backends.triton.integer_linears import fuse_integer_linears
from qcompile.backends.triton.joined_linears import join_linears
from qcompile.backends.triton.normalized_tokens import fuse_norms
from qcompile.backends.triton.outlier_linears import fuse_outlier_linears
from qcompile.backends.triton.products import DOMAIN
from qcompile.backends.triton.residual_norms import fuse_residuals
from qcompile.backends.triton.runtime import has_kernels
from qcompile.backends.triton.session import TorchSession, load
from qcompile.contract import Finding
from qcompile.errors import ModelError
from qcompile.session import Probe
from qcompile.unused_nodes import RemoveUnusedNodes


def write_artifact(model: ir.Model, folder: Path) -> tuple[Finding, ...]:
    """Write the portable graph into a folder, with its functions; it is not changed."""
    model = model.clone()
    RemoveUnusedNodes()(model)
    write(model, folder, external=True)
    return ()


def in_integers(model: ir.Model) -> ir.Model:
    """Return a copy of the model that multiplies what is quantized to 8 bits as integers; outputs keep their names.

    A sum of integers is exact wherever it is computed. One of the floats that they stand for is rounded in the order of
    a kernel, which may answer a tie at the next quantizer in another way than integers do, and a few layers later the
    results are as far apart as the noise of quantization.
    """
    model = model.clone()
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    fuse_integer_linears(model)
    fuse_integer_convolutions(model)
    RemoveUnusedNodes()(model)
    model.graph.opset_imports[DOMAIN] = 1
    return model


def fused(model: ir.Model) -> ir.Model:
    """Return a copy of the model with nodes of `products.DOMAIN`, one for each kernel, where there are kernels for it.

    Outputs keep their names. Weights are packed here, from what the artifact holds.
    """
    model = in_integers(model)
    fuse_grouped_linears(model)
    fuse_codebook_linears(model)
    RemoveUnusedNodes()(model)
    fuse_outlier_linears(model)
    RemoveUnusedNodes()(model)
    join_linears(model)
    fuse_norms(model)
    RemoveUnusedNodes()(model)
    fuse_residuals(model)
    fuse_gates(model)
    return model


def open_file(path: Path, *, threads: int | None = None) -> TorchSession:
    """Load a written model file as `open_model` does; raises ModelError for what is none."""
    return open_model(read(path), threads=threads)


def open_model(model: ir.Model, *, threads: int | None = None) -> TorchSession:
    """Load a portable model, with kernels where they run; it is not changed."""
    return load(prepared(model), threads=threads)


def prepared(model: ir.Model) -> ir.Model:
    """Return a copy of a portable model for the device that is here: of kernels, where they run.

    Where they do not, weights in groups and codebooks stay as they are: they are multiplied in float either way, and
    packing them takes seconds.
    """
    return fused(model) if has_kernels() else in_integers(model)


def open_probes(path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
    """Load a written model file with values as outputs: operator by operator, and as the kernels compute it.

    Where there is no card, what stands for a kernel is computed by torch: the graph is looked at all the same.
    """
    model = read(path)
    found = expose(model, values)
    for name, each in (("triton, operator by operator", model), ("triton, kernels", fused(model))):
        yield Probe(name, load(each), found, lambda channels: channels)


def read(path: Path) -> ir.Model:
    """Return the model of a file; raises ModelError for what is none."""
    try:
        return ir.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ModelError(f"model {path.name}", f"it cannot be read: {error}", "Compile the model again") from error
