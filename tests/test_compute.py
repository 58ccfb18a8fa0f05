"""Device, number type and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from n2s_med import compute as compute_module
from n2s_med.compute import Compute, bf16_is_faster, fastest_threads, set_threads
from n2s_med.errors import ConfigurationError


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True)])
def test_choice_is_taken(precision: str, bf16: bool) -> None:
    compute = Compute.choose("cpu", precision)  # type: ignore[arg-type]
    assert compute == Compute(torch.device("cpu"), bf16)


def test_auto_takes_what_the_machine_has() -> None:
    compute = Compute.choose()
    assert compute.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute.bf16 == bf16_is_faster(compute.device.type)


@pytest.mark.parametrize("faster", [torch.bfloat16, torch.float32])
def test_the_faster_type_is_measured_once_and_kept(
    faster: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.dtype] = []

    def timed(device: torch.device, dtype: torch.dtype) -> float:  # noqa: ARG001
        measured.append(dtype)
        return 1.0 if dtype == faster else 2.0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compute_module, "_convolution_time", timed)
    for _ in range(2):
        bf16_is_faster.cache_clear()
        assert bf16_is_faster("cpu") == (faster == torch.bfloat16)
    assert sorted(measured, key=str) == [torch.bfloat16, torch.float32]
    bf16_is_faster.cache_clear()


@pytest.mark.parametrize("content", [None, "no json", "[1, 2]"])
def test_a_cache_that_is_none_is_measured_again(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no cache can be written: the folder's place is taken by a file."""
    cache = tmp_path / "n2s-med"
    if content is None:
        cache.write_text("a file")
    else:
        cache.mkdir()
        (cache / "number_types.json").write_text(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bf16_is_faster.cache_clear()
    assert isinstance(bf16_is_faster("cpu"), bool)
    bf16_is_faster.cache_clear()


@pytest.mark.parametrize("device", ["cuda:99", "warp", "", "cpu:x"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"device '{device}' is not available\. Use --device cpu\.") as caught:
        Compute.choose(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bf16", [False, True])
def test_convolutions_run_in_the_chosen_type(bf16: bool) -> None:
    conv = torch.nn.Conv2d(1, 1, 3)
    with Compute(torch.device("cpu"), bf16).autocast():
        out = conv(torch.ones(1, 1, 4, 4))
    assert out.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert conv(torch.ones(1, 1, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_placed_batches_keep_their_values(shape: tuple[int, ...]) -> None:
    batch = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    placed = Compute(torch.device("cpu"), bf16=False).place(batch)
    assert torch.equal(placed, batch)
    layout = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    assert placed.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("threads")
def test_threads() -> None:
    assert set_threads(1) == 1
    assert torch.get_num_threads() == 1
    assert set_threads() == len(os.sched_getaffinity(0)) == torch.get_num_threads()
    assert set_threads(10**30) == set_threads()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("best", [1, 2])
def test_the_faster_thread_count_is_kept(best: int) -> None:
    torch.set_num_threads(2)
    assert fastest_threads(lambda: 0.5 if torch.get_num_threads() == best else 1.0) == 0.5
    assert torch.get_num_threads() == best


@pytest.mark.usefixtures("threads")
def test_one_thread_is_not_compared() -> None:
    torch.set_num_threads(1)
    times = iter([0.25])
    assert fastest_threads(lambda: next(times)) == 0.25
    assert torch.get_num_threads() == 1
