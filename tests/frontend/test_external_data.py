"""The gate in front of external data: nothing outside the folder of the model is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import pytest

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.frontend import trace
from qcompile.frontend.external_data import check_proto
from tests.frontend.tensor_places import (
    PLACES,
    WEIGHT,
    external,
    in_an_attribute_of_another_type,
    in_default_of_function,
    in_function,
    in_indices,
    in_initializer,
    in_sparse,
    in_sparse_attribute,
    in_sparse_list,
    in_subgraph,
    in_training,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    return inside


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_data_in_the_folder_is_read(folder: Path) -> None:
    model = trace(save(folder, in_initializer(external("w.bin"))))
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)


def test_data_of_a_function_is_read(folder: Path) -> None:
    model = trace(save(folder, in_function(external("w.bin"))))
    (function,) = model.functions.values()
    constant = next(node for node in function if node.op_type == "Constant")
    np.testing.assert_array_equal(constant.attributes["value"].as_tensor().numpy(), WEIGHT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "{absolute}",
        "C:\\secret.bin",
        "..\\secret.bin",
        "*/_ORT_MEM_ADDR_/*",
        "sub/*/_ORT_MEM_ADDR_/*",
        "./../secret.bin",
        "w.bin\0.txt",
        "",
    ],
)
def test_locations_outside_the_folder_are_refused(folder: Path, place, location: str) -> None:
    location = location.format(absolute=folder.parent / "secret.bin")
    with pytest.raises(UnsafeModelError):
        check_proto(place(external(location)), folder)


@pytest.mark.parametrize("place", PLACES)
def test_files_are_refused_before_anything_reads_them(folder: Path, place) -> None:
    with pytest.raises(UnsafeModelError, match="outside the folder"):
        trace(save(folder, place(external("../secret.bin"))))


@pytest.mark.parametrize("place", PLACES)
def test_symbolic_links_are_refused(folder: Path, place) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    with pytest.raises(UnsafeModelError, match="symbolic link"):
        check_proto(place(external("link.bin")), folder)


def test_a_linked_folder_on_the_way_is_refused(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)
    with pytest.raises(UnsafeModelError, match="symbolic link"):
        trace(save(folder, in_initializer(external("sub/secret.bin"))))


@pytest.mark.parametrize("place", PLACES)
def test_hard_links_are_refused(folder: Path, place) -> None:
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    with pytest.raises(UnsafeModelError, match="hard link"):
        check_proto(place(external("hard.bin")), folder)


@pytest.mark.parametrize(("offset", "length"), [(0, 65), (1, 64), (64, 1), (-1, 4), (0, -4), (2**40, 64)])
def test_data_beyond_the_file_is_refused(folder: Path, offset: int, length: int) -> None:
    with pytest.raises(ModelError, match="is not within"):
        trace(save(folder, in_initializer(external("w.bin", offset=offset, length=length))))


def test_less_data_than_the_dims_ask_for_is_refused(folder: Path) -> None:
    for offset, length in ((0, 60), (4, 60), (4, 0)):
        with pytest.raises(ModelError, match="shorter than its dims ask for, 64 bytes"):
            trace(save(folder, in_initializer(external("w.bin", offset=offset, length=length))))
    short = ir.ExternalTensor("w.bin", 0, 60, ir.DataType.FLOAT, shape=ir.Shape([4, 4]), name="w", base_dir=str(folder))
    model = ir.from_proto(in_initializer(oh.make_tensor("w", onnx.TensorProto.FLOAT, [4, 4], WEIGHT.flatten())))
    model.graph.initializers["w"].const_value = short
    with pytest.raises(ModelError, match="shorter than its dims ask for, 64 bytes"):
        trace(model)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.bin"):
        trace(save(folder, in_initializer(external("gone.bin"))))


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "sub").mkdir()
    with pytest.raises(UnsafeModelError, match="plain file"):
        trace(save(folder, in_initializer(external("sub", length=0))))


@pytest.mark.parametrize("place", PLACES)
def test_models_without_a_folder_are_refused(place) -> None:
    model = place(external("w.bin"))
    for given in (model, model.SerializeToString()):
        with pytest.raises(UnsafeModelError, match="no folder"):
            trace(given, trust_input=True)


NOT_IN_MEMORY = (
    in_sparse,
    in_indices,
    in_sparse_attribute,
    in_sparse_list,
    in_an_attribute_of_another_type,
    in_training,
)
"""Where onnx_ir has no place for a tensor: it raises or leaves it out."""


def in_graph_that_is_a_default_of_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = in_default_of_function(tensor)
    del model.functions[0].attribute_proto[:]
    branches = in_subgraph(tensor).graph.node[0].attribute
    branch = next(each.g for each in branches if each.name == "then_branch")
    model.functions[0].attribute_proto.append(oh.make_attribute("b", branch))
    return model


IN_MEMORY = [place for place in PLACES if place not in NOT_IN_MEMORY] + [in_graph_that_is_a_default_of_function]


@pytest.mark.parametrize("place", IN_MEMORY)
def test_external_tensors_anywhere_in_a_model_in_memory_are_checked(folder: Path, place) -> None:
    for location in ("../secret.bin", str(folder.parent / "secret.bin")):
        proto = place(external(location))
        for model in (ir.from_proto(proto), ir.load(save(folder, proto))):
            with pytest.raises(UnsafeModelError):
                trace(model)


@pytest.mark.parametrize("place", NOT_IN_MEMORY)
def test_onnx_ir_drops_the_tensors_that_are_not_checked(place) -> None:
    try:
        model = ir.from_proto(place(external("../secret.bin")))
    except ir.serde.SerdeError:
        return
    assert b"secret.bin" not in ir.to_proto(model).SerializeToString()


def test_external_tensors_of_a_model_in_memory_are_checked(folder: Path) -> None:
    path = save(folder, in_initializer(external("w.bin")))
    model = ir.load(path)
    copied = trace(model).graph.initializers["w"].const_value
    assert copied is not None
    np.testing.assert_array_equal(copied.numpy(), WEIGHT)
    for location, base in (("../secret.bin", folder), ("w.bin", "")):
        model.graph.initializers["w"].const_value = ir.ExternalTensor(
            location, 0, 64, ir.DataType.FLOAT, shape=ir.Shape([4, 4]), name="w", base_dir=base
        )
        with pytest.raises(UnsafeModelError):
            trace(model)
