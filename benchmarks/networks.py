#!/usr/bin/env python
"""Forms of the score network at equal training time: what each has learned, and how fast it is.

    python benchmarks/networks.py --seconds 150

Each form is trained for the same processor time on one thread, on generated noisy volumes, and judged by Stein's
estimate of the error (SURE) on held-out ones: no clean volume is used. A run that was killed goes on from the JSON
lines kept beside ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from performance.base import Record, best_s, flop_per_voxel, noisy_waves
from quality import code_hash
from records import Cache, grid, write_between_markers
from torch import Tensor, nn
from torch.nn import functional as F
from unet import UNet

from n2s_med.compute import Compute, set_threads
from n2s_med.corpus import Corpus
from n2s_med.score import ScoreUNet
from n2s_med.training import Trainer, TrainingConfig

KEY = ("part", "form", "seconds", "code")
CONFIG = Path(__file__).parents[1] / "configs" / "base-3d.json"
SHAPE = (96, 96, 64)
"""Voxels of the volume on which forms are timed."""

WARM_STEPS, TIMED_STEPS = 3, 12
"""Steps of a trial that tell how many fit the time."""


class PlainScore(ScoreUNet):
    """The plain UNet between the two ends of the score network; traits shift what comes out of its stem."""

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__(3, (1,) * len(channels))
        del self.encoder, self.decoder, self.up, self.head
        self.channels = tuple(channels)
        self.stem, self.unet = self._body()
        self.shift = nn.Linear(6, channels[0], bias=False)
        nn.init.zeros_(self.shift.weight)

    def _body(self) -> tuple[nn.Module, UNet]:
        stem = nn.Conv3d(2, self.channels[0], 3, padding=1)
        unet = UNet(self.channels, self.channels[0])
        unet.down[0] = unet.down[0][2:]  # the stem is the first of its two convolutions
        return stem, unet

    @property
    def stride(self) -> int:
        """Voxels of the finest level per voxel of the coarsest."""
        return 1 << (len(self.channels) - 1)

    def forward(self, v: Tensor, traits: Tensor | None = None) -> Tensor:
        """Return the score of ``v``, as :meth:`ScoreUNet.forward` does."""
        if traits is None:
            traits = v.new_zeros(v.shape[0], 6)
        detail, base = self.split(v)
        size = v.shape[2:]
        x = F.pad(self.features(detail, base), [p for n in reversed(size) for p in (0, -n % self.stride)])
        x = F.leaky_relu(self.stem(x) + self.shift(traits)[..., None, None, None], 0.1)
        correction = self._head(self.unet(x))[(..., *(slice(0, n) for n in size))]
        return self.score(correction, detail, self.noisy(detail), traits)

    def _head(self, x: Tensor) -> Tensor:
        return x


class HalfScore(PlainScore):
    """All at half the resolution: a strided stem, and eight channels out, one for each voxel of a cube of two."""

    def _body(self) -> tuple[nn.Module, UNet]:
        return nn.Conv3d(2, self.channels[0], 2, stride=2), UNet(self.channels, self.channels[0], 8)

    @property
    def stride(self) -> int:
        """Voxels of the volume per voxel of the coarsest level."""
        return 1 << len(self.channels)

    def _head(self, x: Tensor) -> Tensor:
        n, _, *size = x.shape
        cubes = x.view(n, 2, 2, 2, *size).permute(0, 4, 1, 5, 2, 6, 3)
        return cubes.reshape(n, 1, *(2 * s for s in size))


FORMS: Mapping[str, Callable[[], ScoreUNet]] = MappingProxyType(
    {
        "plain 16/32/64": PlainScore,
        "half resolution 32/64": lambda: HalfScore((32, 64)),
        "half resolution 48/96": lambda: HalfScore((48, 96)),
        "ours 16/32/64": lambda: ScoreUNet(3, (16, 32, 64)),
        "ours 16/48/96": lambda: ScoreUNet(3, (16, 48, 96)),
        "ours 16/64/128": lambda: ScoreUNet(3, (16, 64, 128)),
    }
)


def measured(form: str, seconds: float, blocks: int) -> Record:
    """Train a form and tell its held-out SURE, its rate and its size."""
    config = TrainingConfig.from_mapping({**json.loads(CONFIG.read_text()), "checks": 1})
    corpus = Corpus({}, {}, edge=config.patch, blocks=blocks)
    corpus.begin(0)
    step_s = _step_s(form, corpus, config)
    steps = max(1, int(seconds / step_s))
    torch.manual_seed(0)
    trainer = Trainer(corpus, replace(config, steps=steps), Compute.choose("cpu"), network=FORMS[form]())
    network = trainer.run()
    return {
        "sure": trainer.history.sure[-1],
        "steps": steps,
        "voxels_per_s": _rate(network),
        "flop": flop_per_voxel(network),
        "weights": sum(p.numel() for p in network.parameters()),
    }


def _step_s(form: str, corpus: Corpus, config: TrainingConfig) -> float:
    """Processor time of a training step, of a trial that is thrown away."""
    times: list[float] = []
    steps = WARM_STEPS + TIMED_STEPS
    blind = Corpus({}, {}, edge=corpus.edge, blocks=1)
    blind.generated = corpus.generated
    trainer = Trainer(blind, replace(config, steps=steps + 1), Compute.choose("cpu"), network=FORMS[form]())
    trainer.run(lambda *_: times.append(time.process_time()))
    return (times[steps - 1] - times[WARM_STEPS - 1]) / TIMED_STEPS


@torch.no_grad()
def _rate(network: ScoreUNet) -> float:
    """Voxels a second over a whole volume in one piece, in the number type that this processor is fastest in."""
    compute = Compute.choose("cpu")
    placed = network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    v = compute.place(noisy_waves(SHAPE)[None, None])
    with compute.autocast():
        return math.prod(SHAPE) / best_s(lambda: placed(v), 2)


def table(records: Sequence[Record]) -> str:
    """Every form, fastest last, and which of them no other beats in both."""
    base = records[0]["measured"]
    rows = [
        [
            f"**{r['form']}**" if _unbeaten(m, records) else r["form"],
            f"{m['flop'] / 1e3:.0f}",
            f"{m['weights'] / 1e3:,.0f}",
            f"{m['steps']:,}",
            f"{m['sure']:.4f}",
            f"{10 * math.log10(base['sure'] / m['sure']):+.2f}" if min(base["sure"], m["sure"]) > 0 else "–",
            f"{m['voxels_per_s'] / base['voxels_per_s']:.2f}",
        ]
        for r in records
        for m in [r["measured"]]
    ]
    head = [
        "",
        "kFLOP a voxel",
        "thousand weights",
        "steps",
        "error left (SURE)",
        "dB over the first",
        "voxels/s over it",
    ]
    return (
        f"Each trained for {records[0]['seconds']:g} s of processor time on one thread, on generated noisy volumes;"
        " the error is in noise variances, on held-out ones. Rates are those of the whole volume in one piece, on one"
        f" thread. Bold: no other form is both faster and better.\n\n{grid(head, rows)}"
    )


def _unbeaten(mine: Record, records: Sequence[Record]) -> bool:
    others = [r["measured"] for r in records]
    return not any(o["sure"] < mine["sure"] and o["voxels_per_s"] > mine["voxels_per_s"] for o in others)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the forms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="processor time for each (default %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS), metavar="FORM")
    parser.add_argument("--blocks", type=int, default=32, help="held-out blocks (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(argv)
    set_threads(1)
    cache = Cache(options.out.with_name("networks.jsonl"), KEY)
    for form in options.forms:
        key = {"part": "networks", "form": form, "seconds": options.seconds, "code": code_hash()}
        if not cache.get(**key):
            cache.add({**key, "measured": measured(form, options.seconds, options.blocks)})
        found = [r for name in FORMS if (r := cache.get(**{**key, "form": name}))]
        write_between_markers(options.out, table(found), "networks")
        print(form, cache.get(**key), flush=True)


if __name__ == "__main__":
    main()
