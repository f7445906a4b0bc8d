from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.backends.onnxruntime import attention_masks


class Masked(torch.nn.Module):
    """Attention over a padding mask that is the same for every query."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(32, 96)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 8).permute(2, 0, 3, 1, 4)
        allowed = (mask != 0)[:, None, None, :]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", ["float", "w8a8-static"])
def test_padding_mask_of_one_query_is_read_by_all(backend: str, recipe: str) -> None:
    generator, model = np.random.default_rng(0), Masked().eval()
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    data = [{"x": generator.normal(size=(2, 9, 32)).astype(np.float32), "mask": mask} for _ in range(4)]
    expected = model(*(torch.from_numpy(data[0][name]) for name in ("x", "mask"))).detach().numpy()
    (actual,) = qcompile.compile(model, recipe, backend=backend, calibration=data).run(data[0]).values()
    np.testing.assert_allclose(actual, expected, atol=1e-5 if recipe == "float" else 0.05)


@pytest.mark.parametrize(
    ("q", "mask", "expanded"),
    [
        ("b, 2, s, 8", "b, 1, 1, t", True),
        ("b, s, 16", "1, t", True),
        ("b, 2, s, 8", "b, 1, s, t", False),
        ("b, 2, 1, 8", "b, 1, 1, t", False),
    ],
)
def test_only_masks_of_one_query_are_expanded(q: str, mask: str, expanded: bool) -> None:
    k = q.replace("s,", "t,").replace("2, 1,", "2, t,")
    heads = " <q_num_heads = 2, kv_num_heads = 2>" if q.count(",") == 2 else ""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[{q}] q, float[{k}] k, float[{k}] v, bool[{mask}] m) '
        f"=> (float[{q}] y, float[{q}] z) {{ y = Attention{heads} (q, k, v, m) z = Attention{heads} (q, k, v, m) }}"
    )
    attention_masks.legalize_attention_masks(model)
    assert [node.op_type for node in model.graph] == ["Shape", "Concat", "Expand"] * expanded + [
        "Attention",
        "Attention",
    ]
