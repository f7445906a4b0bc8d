"""The torch door: dynamic axes, modes, names and errors of exported modules."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from qcompile.errors import ModelError
from qcompile.frontend import trace
from qcompile.graph import layer_name


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.dropout(self.projection(x))
        return y if mask is None else y * mask


def run(model: ir.Model, **feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feed)[0]


def dynamic_axes(model: ir.Model) -> dict[str | None, list[bool]]:
    return {value.name: [not isinstance(dim, int) for dim in value.shape or ()] for value in model.graph.inputs}


def test_arguments_may_be_a_tensor_a_tuple_or_a_mapping() -> None:
    x, mask = torch.ones(2, 4), torch.ones(2, 3)
    assert dynamic_axes(trace(Masked(), example_inputs=x)) == {"x": [True, False]}
    assert set(dynamic_axes(trace(Masked(), example_inputs=(x, mask)))) == {"x", "mask"}
    assert set(dynamic_axes(trace(Masked(), example_inputs={"x": x.numpy(), "mask": mask}))) == {"x", "mask"}


def test_axes_of_size_one_in_the_example_stay_dynamic() -> None:
    module = Masked().eval()
    model = trace(module, example_inputs=torch.ones(1, 1, 4))
    assert dynamic_axes(model) == {"x": [True, True, False]}
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x), module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_a_tensor_that_broadcasts_over_the_batch_stays_static() -> None:
    model = trace(Masked(), example_inputs=(torch.ones(2, 4), torch.ones(1, 3)))
    assert dynamic_axes(model) == {"x": [True, False], "mask": [False, False]}


def test_the_mode_of_the_module_is_restored_and_the_export_is_in_evaluation_mode() -> None:
    module = Masked().train()
    model = trace(module, example_inputs=torch.ones(2, 4))
    assert module.training
    assert "Dropout" not in {node.op_type for node in model.graph}


def test_a_part_in_evaluation_mode_stays_so_in_a_module_in_training_mode() -> None:
    module = Masked().train()
    module.dropout.eval()
    trace(module, example_inputs=torch.ones(2, 4))
    assert (module.training, module.projection.training, module.dropout.training) == (True, True, False)


class FixedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4) + torch.arange(4.0)


def test_a_module_that_allows_no_dynamic_axis_is_exported_with_the_shapes_of_the_example() -> None:
    model = trace(FixedBatch(), example_inputs=torch.ones(2, 4))
    assert run(model, x=np.ones((2, 4), np.float32)).shape == (2, 4)


def test_given_dynamic_shapes_are_taken_as_they_are() -> None:
    shapes = {"x": {0: torch.export.Dim("rows")}}
    model = trace(Masked(), example_inputs={"x": torch.ones(2, 4)}, dynamic_shapes=shapes)
    assert [str(dim) for dim in model.graph.inputs[0].shape or ()] == ["rows", "4"]


def test_an_exported_program_is_taken_as_it_is() -> None:
    program = torch.export.export(Masked().eval(), (torch.ones(2, 4),))
    assert dynamic_axes(trace(program)) == {"x": [False, False]}


def test_opset_and_stack_traces() -> None:
    model = trace(Masked(), example_inputs=torch.ones(2, 4))
    assert model.opset_imports[""] == 23
    assert not [node for node in model.graph if "pkg.torch.onnx.stack_trace" in node.metadata_props]
    assert any("projection" in node.metadata_props["pkg.torch.onnx.name_scopes"] for node in model.graph)


@pytest.mark.parametrize(
    ("example", "reason"),
    [(None, "running it once"), (torch.ones(2, 5), "RuntimeError"), ({"wrong": torch.ones(2, 4)}, "cannot export")],
)
def test_failures_say_why(example: Any, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=reason):
        trace(Masked(), example_inputs=example)
    assert capfd.readouterr().err == ""


def test_export_is_silent_and_leaves_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    trace(Masked(), example_inputs=torch.ones(2, 4))
    assert logging.root.manager.disable == before
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


class ReturnsMapping(torch.nn.Module):
    """Returns its outputs by name."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"doubled": x * 2, "x": x + 1}


def test_outputs_have_the_names_that_the_module_gives_them():
    names = [value.name for value in trace(ReturnsMapping(), example_inputs={"x": torch.ones(2, 3)}).graph.outputs]
    assert names[0] == "doubled"
    assert names[1] != "x", "an input has this name already"


class Returns(torch.nn.Module):
    """Returns its input unchanged, besides what it computes."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x, "y": x + 1}


class ReturnsTwice(torch.nn.Module):
    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, x, z


def test_an_input_that_is_returned_keeps_its_name() -> None:
    model = trace(Returns(), example_inputs={"x": torch.ones(2, 3)})
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["x_output", "y"]
    np.testing.assert_array_equal(run(model, x=np.full((4, 3), 2, np.float32)), np.full((4, 3), 2))
    model = trace(ReturnsTwice(), example_inputs=(torch.ones(2, 3), torch.zeros(2, 3)))
    assert [value.name for value in model.graph.inputs] == ["x", "z"]
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    assert len(set(names)) == 5
    ones, zeros = np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)
    np.testing.assert_array_equal(run(model, x=ones, z=zeros), ones)


class Normed(torch.nn.Module):
    """Norms that the exporter fuses into the layers before them, of which one shares its weight with another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.up, self.bn_up = torch.nn.ConvTranspose2d(4, 4, 2), torch.nn.BatchNorm2d(4)
        self.fc, self.bn_fc, self.tied = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)
        self.tied.weight = self.fc.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_up(self.up(torch.relu(self.bn(self.conv(x)))))
        return self.tied(self.bn_fc(self.fc(x.mean((2, 3)))))


def test_a_layer_that_a_norm_is_fused_into_keeps_its_name() -> None:
    traced = trace(Normed(), example_inputs=torch.zeros(2, 3, 8, 8))
    layers = [layer_name(node) for node in traced.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert layers == ["conv", "up", "fc", "tied"]


def _block() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()


def _projections(module: torch.nn.Module) -> list[str]:
    """Names of the layers of a model, of those that hold a weight."""
    traced = trace(module, example_inputs=torch.zeros(2, 3, 8))
    return [linear_name for node in traced.graph if (linear_name := _weighted(node))]


def _weighted(node: ir.Node) -> str:
    held = any(value is not None and value.is_initializer() and len(value.shape or ()) == 2 for value in node.inputs)
    return layer_name(node) if held and node.op_type in ("Gemm", "MatMul") else ""


LAYERS = ["self_attn", "self_attn.out_proj", "linear1", "linear2"]


@pytest.mark.parametrize("different", [False, True])
@pytest.mark.parametrize("path", ["layers.", ""])
def test_layers_of_deep_copies_have_their_own_names_whatever_their_weights(different: bool, path: str) -> None:
    copies = torch.nn.TransformerEncoder(_block(), 2) if path else torch.nn.Sequential(_block(), _block())
    if different:
        for parameter in copies.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.01)
    assert _projections(copies) == [f"{path}{index}.{layer}" for index in (0, 1) for layer in LAYERS]


def test_layers_of_a_module_that_is_called_twice_have_a_name_of_it() -> None:
    block = _block()
    names = _projections(torch.nn.Sequential(block, block))
    assert [name.partition(".")[2] for name in names] == LAYERS * 2


class Tied(torch.nn.Module):
    """A head that takes the table of embeddings as its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = torch.nn.Embedding(8, 8), torch.nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.body(self.table(ids)), self.table.weight)


def test_a_head_that_is_tied_to_embeddings_is_not_called_as_they_are() -> None:
    traced = trace(Tied(), example_inputs=torch.zeros(2, 3, dtype=torch.int64))
    names = [layer_name(node) for node in traced.graph if node.op_type in ("Gather", "Gemm", "MatMul")]
    assert names[:2] == ["table", "body"]
    assert len(set(names)) == 3
