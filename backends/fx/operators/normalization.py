"""Normalization, dropout and the losses of ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Host, single
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import torch_type
from qcompile.errors import UnsupportedOperator


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; in training of the batch, with the running statistics."""
    if not spatial:
        raise UnsupportedOperator("BatchNormalization", "spatial=0 is not supported", "Convert it to opset 9")
    if not training_mode:
        of, spread, factor, shift = (values.to(x.dtype) for values in (mean, variance, scale, bias))
        return (functional.batch_norm(x, of, spread, factor, shift, eps=epsilon),)
    axes = (0, *range(2, x.dim()))
    now, spread = x.mean(axes), x.var(axes, unbiased=False)
    shift, width = in_front(now, x.dim() - 2), in_front(spread, x.dim() - 2)
    made = (x - shift) / torch.sqrt(width + epsilon) * in_front(scale, x.dim() - 2) + in_front(bias, x.dim() - 2)
    running = mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)
    return (made, *running)[: max(outputs, 1)]


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    sizes = [x.shape[position] for position in axes]
    fits = all(
        given is None or (given.shape == torch.Size(sizes) and given.dtype == x.dtype) for given in (scale, bias)
    )
    if outputs == 1 and fits:
        return (functional.layer_norm(x, sizes, scale, bias, epsilon),)
    wide = x.to(torch_type(stash_type))
    mean = wide.mean(axes, keepdim=True)
    deviation = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    made = ((wide - mean) * deviation).to(x.dtype) * scale
    return (made if bias is None else made + bias, mean, deviation)


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """X / sqrt(mean(x ** 2) + epsilon) * scale over the last axes."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch_type(stash_type))
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample normalized over its own elements."""
    axes = tuple(range(2, x.dim()))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    made = (x - mean) * torch.rsqrt(variance + epsilon)
    return made * in_front(scale, x.dim() - 2) + in_front(bias, x.dim() - 2)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1
) -> Tensor:
    """Groups of channels normalized together, then a scale and a bias for each channel."""
    made = functional.group_norm(x.to(torch_type(stash_type)), num_groups, eps=epsilon).to(x.dtype)
    return made * in_front(scale, x.dim() - 2) + in_front(bias, x.dim() - 2)


@operator("GroupNormalization", since=18)
def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int) -> Tensor:
    """As from opset 21 on, with a scale and a bias for each group."""
    made = functional.group_norm(x, num_groups, eps=epsilon)
    repeats = x.shape[1] // num_groups
    spread = [in_front(values.repeat_interleave(repeats), x.dim() - 2) for values in (scale, bias)]
    return made * spread[0] + spread[1]


@operator("LRN")
def lrn(x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Tensor:
    """X / (bias + alpha / size * the sum of squares of near channels) ** beta."""
    before, behind = (size - 1) // 2, math.ceil((size - 1) / 2)
    squares = functional.pad(x.square().movedim(1, -1), (before, behind))
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * sums) ** beta


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """X over its norm along an axis; 0 where that is 0."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """(x - mean) / the standard deviation over some axes."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


@operator("Dropout", host=("ratio", "training_mode"))
def dropout(
    x: Tensor,
    ratio: Host | float | None = None,
    training_mode: Host | None = None,
    *,
    seed: int | None = None,  # noqa: ARG001 - nothing is drawn
) -> tuple[Tensor, Tensor]:
    """X and a mask of what is kept, which is all. Raises UnsupportedOperator in training with a ratio above 0."""
    share = 0.5 if ratio is None else single(ratio)
    if training_mode is not None and single(training_mode) and share != 0:
        raise UnsupportedOperator("Dropout", "it is in training mode, and drops at random", "Export for inference")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative score of the target's class, weighted, of elements that are not ignored."""
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
    classes = torch.where(ignored, 0, target).to(torch.int64)
    loss = -scores.gather(1, classes.unsqueeze(1)).squeeze(1)
    factor = torch.ones_like(loss) if weight is None else weight[classes]
    factor = torch.where(ignored, torch.zeros_like(factor), factor)
    if reduction == "none":
        return loss * factor
    total = (loss * factor).sum()
    return total if reduction == "sum" else total / factor.sum()


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss of log_softmax(scores), and that logarithm."""
    logarithm = torch.log_softmax(scores, 1)
    loss = negative_log_likelihood_loss(logarithm, target, weight, ignore_index=ignore_index, reduction=reduction)
    return loss, logarithm
