"""A convolution and what activates it in one, and the gradients of both.

Where oneDNN computes, it activates in passing, with no pass over memory of its own, whatever the size of the batch:
left to itself PyTorch takes a path several times slower for a single volume in float32. The gradient of the weights is
taken apart from that of the data, as oneDNN is quicker so; and of narrow volumes in bfloat16 side by side in one wide
volume, as its matrix units work on rows of voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from n2s_med.compute import onednn_in_bf16

NARROW = 8
"""Voxels along the last axis up to which volumes are put side by side."""


def convolved(x: Tensor, weight: Tensor, bias: Tensor, padding: int, slope: float = 1.0) -> Tensor:
    """Convolution of stride 1 of features (N, C, spatial) in channels-last memory, then leaky ReLU of this slope."""
    answer: Tensor = _Convolved.apply(x, weight, bias, padding, slope)  # type: ignore[no-untyped-call]
    return answer


class _Convolved(torch.autograd.Function):
    """See :func:`convolved`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int, slope: float) -> Tensor:
        ctx.padding, ctx.slope = padding, slope
        ones, pads = [1] * (x.ndim - 2), [padding] * (x.ndim - 2)
        if _by_onednn(x):
            follows = ("leaky_relu", [slope], "") if slope != 1 else ("none", [], "")
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, pads, ones, ones, 1, *follows)
        else:
            y = torch.convolution(x, weight, bias, ones, pads, ones, False, [0] * len(ones), 1)
            if slope != 1:
                y = F.leaky_relu(y, slope, inplace=True)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
        if ctx.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
        number, of_x, of_weight, of_bias = len(x), None, None, None
        if number == 1 and x.dtype == torch.float32 and _by_onednn(x):
            x, grad = (torch.cat((t, torch.zeros_like(t))) for t in (x, grad))
        if ctx.needs_input_grad[0]:
            of_x = _gradients(grad, x, weight, ctx.padding, (True, False, False))[0][:number]
        if any(ctx.needs_input_grad[1:3]):
            if x.dtype == torch.bfloat16 and _by_onednn(x) and x.shape[-1] <= NARROW and x.shape[2:] == grad.shape[2:]:
                grad, x = _abreast(grad), _abreast(x)
            _, of_weight, of_bias = _gradients(grad, x, weight, ctx.padding, (False, True, True))
        return of_x, of_weight, of_bias, None, None


def _by_onednn(x: Tensor) -> bool:
    """Whether oneDNN convolves these features."""
    if x.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and onednn_in_bf16())


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool, bool]) -> Any:
    """Of data, weights and bias, as wanted."""
    ones = [1] * (x.ndim - 2)
    geometry = (ones, [padding] * len(ones), ones, False, [0] * len(ones), 1)
    return torch.ops.aten.convolution_backward(grad, x, weight, [weight.shape[0]], *geometry, wanted)


def _abreast(x: Tensor) -> Tensor:
    """Volumes (N, C, ..., n) side by side along their last axis, zeros between: (1, C, ..., N (n + 1))."""
    number, channels, *size = x.shape
    wide = x.new_zeros(*size[:-1], number, size[-1] + 1, channels)
    wide[..., :-1, :] = x.movedim((0, 1), (-3, -1))
    return wide.flatten(-3, -2)[None].movedim(-1, 1)
