"""A network that is given a volume in chunks of planes says what it says of the volume in one piece."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from random_networks import random_network
from torch import Tensor

from n2s_med.compute import Compute, onednn_in_bf16
from n2s_med.noise.correlation import Correlation
from n2s_med.score import inference, stream
from n2s_med.score.orientations import orientations
from n2s_med.score.stream import StreamedNetwork, Together, Windows

CPU = Compute(torch.device("cpu"), bf16=False)


def chunks(volume: Tensor, planes: int) -> Iterator[Tensor]:
    return iter(volume.split(planes, dim=-1))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("planes", [1, 4, 7, 100])
@pytest.mark.parametrize("channels", [(3,), (3, 4), (3, 4, 5)], ids=len)
@pytest.mark.parametrize("shape", [(17, 10, 41), (1, 1, 1), (5, 6, 2), (8, 9, 1), (33, 70), (5, 1)], ids=str)
def test_chunks_change_nothing(
    shape: tuple[int, ...], channels: tuple[int, ...], planes: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it what large planes compute again."""
    if large:
        monkeypatch.setattr(stream, "LARGE", 0)
    generator = torch.Generator().manual_seed(1)
    v = 3 * torch.randn(1, *shape, generator=generator)
    traits = 0.2 * torch.rand(2 * len(shape), generator=generator)
    unet = random_network(len(shape), channels)
    with torch.no_grad():
        whole = unet(v[:, None], traits[None])[:, 0]
    streamed = torch.cat(list(StreamedNetwork(unet, traits, CPU)(chunks(v, planes))), dim=-1)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("planes", [4, 100])
@pytest.mark.parametrize("shape", [(17, 10, 41), (5, 6, 2), (33, 70)], ids=str)
def test_mean_over_orientations(shape: tuple[int, ...], planes: int) -> None:
    """Of all, or of some."""
    v = 3 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    traits = 0.2 * torch.rand(2 * len(shape), generator=torch.Generator().manual_seed(2))
    unet = random_network(len(shape), (3, 4, 5))
    ways = orientations(3, (1.0,) * len(shape), Correlation.white(len(shape)))
    with torch.no_grad():
        apart = [way.of(unet)(v[:, None], traits[None])[:, 0] for way in ways]
    assert float((apart[1] - apart[0]).abs().max()) > 0.1
    streamed = StreamedNetwork(unet, traits, CPU, ways)
    for passes in ([0], range(1, 3), None):
        together = torch.cat(list(streamed(chunks(v, planes), passes)), dim=-1)
        torch.testing.assert_close(
            together, torch.stack([apart[n] for n in passes or range(3)]).mean(dim=0), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("shape", [(17, 10, 23), (33, 70)], ids=str)
def test_bfloat16_is_near(shape: tuple[int, ...], onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its rounding of the plain fp32 network, and no less so where oneDNN does what follows a convolution."""
    if onednn and not onednn_in_bf16():
        pytest.skip("this processor has no bfloat16 for oneDNN")
    monkeypatch.setattr(inference, "onednn_in_bf16", lambda: onednn)
    v = 3 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    traits = torch.full((2 * len(shape),), 0.1)
    unet = random_network(len(shape), (16, 32, 32))
    streamed = StreamedNetwork(unet, traits, Compute(torch.device("cpu"), bf16=True))
    assert streamed.layers[0].fused is onednn
    with torch.no_grad():
        whole = unet(v[:, None], traits[None])[:, 0]
        error = torch.cat(list(streamed(chunks(v, 6))), dim=-1) - whole
    assert float(error.square().mean().sqrt()) < 0.01 * float(whole.std())
    assert float(error.abs().max()) < 0.05 * float(whole.std())


def test_no_chunks_no_answer() -> None:
    assert not list(StreamedNetwork(random_network(3, (3, 4)), torch.zeros(6), CPU)(iter(())))


def test_the_network_itself_is_left_alone() -> None:
    unet = random_network(3, (3, 4))
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    StreamedNetwork(unet, torch.ones(6), Compute(torch.device("cpu"), bf16=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert unet.head.padding == (1, 1, 1)


def test_planes_come_before_the_last_is_given() -> None:
    """What is held back does not grow: slices go in, slices come out."""
    given = 0

    def planes() -> Iterator[Tensor]:
        nonlocal given
        for _ in range(100):
            given += 4
            yield torch.zeros(1, 5, 6, 4)

    done, lag = 0, 0
    for answer in StreamedNetwork(random_network(3, (3, 4, 5)), torch.zeros(6), CPU)(planes()):
        lag = max(lag, given - done)
        done += answer.shape[-1]
    assert done == 400
    assert lag <= 40


def planes_of(*numbers: int) -> Iterator[Tensor]:
    """Chunks (1, 1, planes) that count from one."""
    start = 1
    for number in numbers:
        yield torch.arange(start, start := start + number).float()[None, None]


@pytest.mark.parametrize(("repeat", "ends"), [(False, (0, 0)), (True, (1, 6))])
def test_windows(repeat: bool, ends: tuple[int, int]) -> None:
    seen = [w.flatten().tolist() for w in Windows(planes_of(1, 3, 2), 1, repeat=repeat)]
    inner = [value for window in seen for value in window[1:-1]]
    assert inner == [1, 2, 3, 4, 5, 6]
    assert (seen[0][0], seen[-1][-1]) == ends


def test_windows_of_a_multiple() -> None:
    found = [m.flatten().tolist() for m in Windows(planes_of(1, 3, 3, 1), 0, multiple=4)]
    assert found == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_windows_that_share_one_plane() -> None:
    found = [w.flatten().tolist() for w in Windows(planes_of(1, 3, 1), 1, overlap=1)]
    assert found == [[0, 1], [1, 2, 3, 4], [4, 5], [5, 0]]


def test_short_chunks_are_joined() -> None:
    """What follows is done by who takes a chunk, once for each plane."""

    def double(chunk: Tensor, out: Tensor) -> None:
        torch.mul(chunk, 2, out=out)

    found = [w.flatten().tolist() for w in Windows(planes_of(1, 1, 1, 3, 1), 1, least=3, put=double)]
    assert found == [[0, 2, 4, 6], [4, 6, 8, 10, 12], [10, 12, 14, 0]]


def test_together_stops_with_the_shortest() -> None:
    pairs = list(Together(planes_of(2, 3), planes_of(1, 1, 2)))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sum(a.shape[2] for a, _ in pairs) == 4
