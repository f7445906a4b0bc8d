"""AutoRound of Intel, on one linear at a time: rounding and ranges tuned by the signs of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.errors import MissingDependencyError
from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence, Grouped, finite, usable_scale
from qcompile.solvers.rtn import rtn

Array = npt.NDArray[Any]

_FEW_BITS = 3
"""Bits up to which AutoRound's rate of learning is twice as high."""


def auto_round(weight: Array, scheme: GroupScheme, seen: Evidence, *, iters: int = 200) -> Grouped:
    """Return a weight as AutoRound rounds it, tuned on the second moments of what the linear multiplies.

    Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023): a number
    in [-0.5, 0.5] for each weight, and two in [0, 1] for the ends of each group. The quantizer and the descent are
    those of the package; what is tuned is not what it tunes by itself: there, the outputs of a whole block of layers on
    sampled rows; here, with d the error of the weight, d gram dT of a lone layer, which is its mean squared error on
    all rows. Outputs do not depend on each other, so the best step is kept of each.

    Without second moments, and for an empty weight, it is `rtn`; NaN and infinities are those of `finite`.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        seen: what calibration saw.
        iters: steps of the descent.

    Raises:
        MissingDependencyError: auto-round is not installed.
    """
    if seen.gram is None or not weight.size or not np.isfinite(seen.gram).all():
        return rtn(weight, scheme, seen)
    try:
        import torch
        from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
        from auto_round.wrapper import WrapperLinear
    except ImportError as error:
        raise MissingDependencyError("auto-round", str(error), "pip install 'qcompile[inc]'") from error
    source = torch.from_numpy(np.ascontiguousarray(finite(weight).T))
    gram = torch.from_numpy(np.asarray(seen.gram, np.float32))
    wrapper = WrapperLinear(_layer(source, scheme), enable_torch_compile=False, device="cpu", iters=iters)
    tuned = wrapper.params
    rate = (2.0 if scheme.bits <= _FEW_BITS else 1.0) / max(iters, 1)
    optimizer = SignSGD(list(tuned.values()), lr=rate, weight_decay=0, momentum=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(iters, 1))
    least = torch.full((len(source),), torch.inf)
    best = {name: value.detach().clone() for name, value in tuned.items()}
    for _ in range(iters):
        noise = wrapper._qdq_weight(tuned["value"], tuned["min_scale"], tuned["max_scale"])[0] - source
        losses = ((noise @ gram) * noise).sum(dim=1)
        better = losses.detach() < least
        least = torch.where(better, losses.detach(), least)
        for name, value in tuned.items():
            best[name].view(len(source), -1)[better] = value.detach().view(len(source), -1)[better]
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found, scale, zero_point = wrapper._qdq_weight(best["value"], best["min_scale"], best["max_scale"])
    return _grouped(found.numpy().T, scale, zero_point, scheme)


def _layer(weight: Any, scheme: GroupScheme) -> Any:
    """Return a torch linear with the settings that AutoRound reads from it."""
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    settings = {"bits": scheme.bits, "sym": scheme.sym, "data_type": "int", "act_bits": 16}
    for name, value in (settings | {"group_size": scheme.size(weight.shape[1]), "scale_dtype": torch.float32}).items():
        setattr(layer, name, value)
    return layer


def _grouped(weight: Array, scale: Any, zero_point: Any, scheme: GroupScheme) -> Grouped:
    """Return a weight that is on a grid [inputs, outputs] as its integers; scales come output by output."""
    inputs, outputs = weight.shape
    shape = (outputs, scheme.groups(inputs))
    scales = usable_scale(scale.numpy().reshape(shape).T)
    zeros = None if scheme.sym else np.rint(zero_point.numpy()).reshape(shape).T
    places = np.arange(inputs) // scheme.size(inputs)
    integers = np.rint(weight / scales[places]) + (0 if zeros is None else zeros[places])
    low, high = scheme.range
    stored = np.clip(integers, low, high).astype(np.int8 if scheme.sym else np.uint8)
    return Grouped(stored, scales, None if zeros is None else zeros.astype(np.uint8))
