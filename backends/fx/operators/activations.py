"""Activations that torch has under other names, or with other settings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.table import operator


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return functional.celu(x, alpha)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x, and alpha * (exp(x) - 1) below 0."""
    return functional.elu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X * (1 + erf(x / sqrt(2))) / 2, or its approximation by tanh."""
    return functional.gelu(x, approximate=approximate)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha * x + beta, within 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """x, and alpha * x below 0."""
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu_1(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu of opsets below 7: a slope for each channel."""
    return prelu(x, in_front(slope, x.dim() - 2))


@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x, and slope * x below 0; the slope broadcasts to x."""
    return torch.where(x < 0, slope * x, x)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """Gamma * x, and gamma * alpha * (exp(x) - 1) below 0."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X + bias below -lambd, x - bias above lambd, else 0."""
    lower, upper = x < -lambd, x > lambd
    return torch.where(lower, x + bias, torch.where(upper, x - bias, 0)).to(x.dtype)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where it is above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis; float16 on the processor in the steps, and roundings, of ONNX's function."""
    if x.dtype is torch.float16 and x.device.type == "cpu":
        powers = torch.exp(x - x.amax(axis, keepdim=True))
        return powers / powers.sum(axis, keepdim=True)
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of softmax."""
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first of the greatest elements along an axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@operator("Softmax")
def flat_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax of opsets below 13: over all axes from one on."""
    return torch.softmax(x.flatten(axis % x.dim()), -1).reshape(x.shape)


@operator("LogSoftmax")
def flat_log_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """LogSoftmax of opsets below 13: over all axes from one on."""
    return torch.log_softmax(x.flatten(axis % x.dim()), -1).reshape(x.shape)


@operator("Hardmax")
def flat_hardmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax of opsets below 13: over all axes from one on."""
    return hardmax(x.flatten(axis % x.dim())).reshape(x.shape)
