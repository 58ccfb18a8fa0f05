"""The layers of a score network as inference runs them.

The finest level is thin, and what is thin leaves matrix units idle and waits for memory. So it goes by blocks of two
voxels along each axis, their channels side by side: its four layers become convolutions at half the resolution with
eight times the channels, of the same weights with zeros between. Where oneDNN computes in bfloat16, leaky ReLU and sum
are part of a convolution and take no pass over memory of their own.

Planes lie along the first spatial axis, where convolutions run over long rows of memory; so the kernels are turned.
Along the planes nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from n2s_med.compute import Compute, onednn_in_bf16
from n2s_med.score.blocks import gathered, scattered, spread
from n2s_med.score.network import SLOPE, ScoreUNet

Layer = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Convolution:
    """A convolution of planes (1, C, planes, ...).

    Attributes
    ----------
    weight, bias
        As PyTorch has them.
    stride
        Along every axis.
    padding
        Zeros on either side within the plane.
    transposed
        Whether it is a transposed one, of which there is the answer alone.
    fused
        Whether oneDNN does what follows, too.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    padding: int = 0
    transposed: bool = False
    fused: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """What the convolution gives."""
        padding, stride, dilation, groups = self._geometry
        outer = [0] * len(stride)
        return torch.convolution(x, self.weight, self.bias, stride, padding, dilation, self.transposed, outer, groups)

    def activated(self, x: Tensor) -> Tensor:
        """The same, activated if ``fused``, else not yet."""
        if not self.fused:
            return self(x)
        convolution = torch.ops.mkldnn._convolution_pointwise
        answer: Tensor = convolution(x, self.weight, self.bias, *self._geometry, "leaky_relu", [SLOPE], "")
        return answer

    def added(self, x: Tensor, there: Tensor) -> Tensor:
        """The same, added to what is there in its place, and not activated."""
        if not self.fused:
            return there.add_(self(x))
        convolution = torch.ops.mkldnn._convolution_pointwise_.binary
        convolution(there, x, self.weight, self.bias, *self._geometry, "add", None, None, [], None)
        return there

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation, groups."""
        axes = self.weight.ndim - 2
        return [0] + [self.padding] * (axes - 1), [self.stride] * axes, [1] * axes, 1


class Layers:
    """The layers of a network, their weights where and as they are needed.

    Parameters
    ----------
    network
        The network; its weights are copied.
    compute
        Device and number type.

    Attributes
    ----------
    stem
        From features, one voxel more on either side, to the blocks of the finest level.
    down
        The ways into the levels below the finest, finest first.
    encoder, decoder
        Each level's convolutions; the finest has none.
    up
        The ways back into each level, finest first.
    head
        From blocks, one more on either side, to blocks that begin a voxel earlier along each axis.
    """

    def __init__(self, network: ScoreUNet, compute: Compute) -> None:
        self.device, self.dtype = compute.device, torch.bfloat16 if compute.bf16 else torch.float32
        self.layout = torch.channels_last_3d if network.spatial_dims == 3 else torch.channels_last
        self.fused = compute.bf16 and compute.device.type == "cpu" and onednn_in_bf16()
        ways = [level.layers[0] for level in network.encoder]
        self.stem = self._placed(ways[0], spread, stride=2, padding=1)
        self.down = [self._placed(way, gathered) for way in ways[1:2]]
        self.down += [self._placed(way, stride=2) for way in ways[2:]]
        self.encoder = [[self._placed(c, padding=1) for c in level.layers[1:]] for level in network.encoder]
        self.decoder = [[self._placed(c, padding=1) for c in level.layers] for level in network.decoder]
        self.up = [self._placed(way, scattered) for way in network.up[:1]]
        self.up += [self._placed(way, stride=2, transposed=True) for way in network.up[1:]]
        self.head = self._placed(network.head, spread, gathered, padding=1)

    def _placed(
        self,
        layer: Layer,
        *forms: Callable[[Tensor], Tensor],
        stride: int = 1,
        padding: int = 0,
        transposed: bool = False,
    ) -> Convolution:
        """A layer, its planes first, with its weights in other forms."""
        weight = layer.weight.detach().movedim(-1, 2)
        for form in forms:
            weight = form(weight)
        assert layer.bias is not None
        bias = layer.bias.detach().repeat(weight.shape[int(transposed)] // layer.out_channels)
        weight = weight.to(self.device, self.dtype).contiguous(memory_format=self.layout)
        bias = bias.to(self.device, self.dtype)
        return Convolution(weight, bias, stride, padding, transposed, self.fused)
