"""A learned score held against the exact one: a Gaussian mixture on a line, as the article's figures 1 and 2.

A small network learns the score of noisy numbers from noisy numbers alone. The score of a noisy mixture and
its posterior mean are known in closed form, so both what was learned and what Tweedie's formula makes of it
can be judged.

Run with ``python benchmarks/toy_score.py``; it takes seconds and writes ``docs/figures/toy_score.png``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from n2s_med.score import ArDae, Objective

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "toy_score.png"


@dataclass(frozen=True)
class Mixture:
    """Clean numbers from a few Gaussians; measured with unit Gaussian noise."""

    weights: Tensor
    means: Tensor
    sds: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Clean values, shape (count, 1)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return (self.means[which] + self.sds[which] * torch.randn(count, generator=generator))[:, None]

    def log_density(self, v: Tensor, noise_variance: float) -> Tensor:
        """``log p(v)`` of clean values with Gaussian noise."""
        return torch.logsumexp(self._log_joint(v, noise_variance), -1)

    def score(self, v: Tensor, noise_variance: float) -> Tensor:
        """``∂ log p(v)/∂v``: each component's pull, weighted by its posterior probability."""
        variance = self.sds**2 + noise_variance
        share = torch.softmax(self._log_joint(v, noise_variance), -1)
        return (share * (self.means - v[..., None]) / variance).sum(-1)

    def posterior_mean(self, v: Tensor, noise_variance: float) -> Tensor:
        """E[x given v], component by component."""
        gain = self.sds**2 / (self.sds**2 + noise_variance)
        share = torch.softmax(self._log_joint(v, noise_variance), -1)
        return (share * (self.means + gain * (v[..., None] - self.means))).sum(-1)

    def _log_joint(self, v: Tensor, noise_variance: float) -> Tensor:
        variance = self.sds**2 + noise_variance
        deviation = (v[..., None] - self.means) ** 2 / variance
        return self.weights.log() - 0.5 * (deviation + variance.log() + math.log(2 * math.pi))


THREE = Mixture(torch.tensor([0.3, 0.45, 0.25]), torch.tensor([-5.0, 0.0, 6.0]), torch.tensor([0.5, 0.8, 1.0]))


def learned_score(
    mixture: Mixture, objective: Objective, *, steps: int = 1500, batch: int = 1024, seed: int = 0
) -> nn.Module:
    """Train a small network on noisy values by antithetic pairs; it never sees a clean one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(1, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y = mixture.sample(batch, generator)
        y = y + torch.randn(y.shape, generator=generator)
        white = torch.randn(y.shape, generator=generator)
        loss = sum((objective.loss(network, y, sign * white).mean() for sign in (1, -1)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(requires_grad=False)


def relative_error(got: Tensor, wanted: Tensor, weight: Tensor) -> float:
    """Root of the weighted mean squared difference over that of what is wanted."""
    return float(((weight * (got - wanted) ** 2).sum() / (weight * wanted**2).sum()).sqrt())


def draw(sigma_a: float, steps: int, figure: Path) -> tuple[float, float]:
    """Train, write the picture, and return the relative errors of score and posterior mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    objective, noise_variance = ArDae(sigma_a), 1 + sigma_a**2
    network = learned_score(THREE, objective, steps=steps)
    v = torch.linspace(-9, 10, 400)
    learned = network(v[:, None])[:, 0]
    exact, density = THREE.score(v, noise_variance), THREE.log_density(v, noise_variance).exp()
    denoised, posterior = v + objective.scale * learned, THREE.posterior_mean(v, noise_variance)

    plot, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, ours, truth, names in (
        (axes[0], learned, exact, ("learned from noisy values", "exact score")),
        (axes[1], denoised, posterior, ("Tweedie's formula on it", "exact posterior mean")),
    ):
        low, high = float(truth.min()), float(truth.max())
        axis.fill_between(v, low, low + 0.5 * (high - low) * density / density.max(), color="0.9", lw=0)
        axis.plot(v, truth, color="black", lw=3, label=names[1])
        axis.plot(v, ours, color="tab:orange", lw=1.5, ls="--", label=names[0])
        axis.set_xlabel("noisy value v, in noise standard deviations")
        axis.legend(frameon=False)
    axes[0].set_title("Score of the noisy mixture")
    axes[0].set_ylabel("∂ log p(v) / ∂v")
    axes[1].plot(v, v, color="0.6", lw=0.8)
    axes[1].set_title("Denoised value (thin line: not denoised; grey: density)")
    axes[1].set_ylabel("E[x given v]")
    figure.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(figure, dpi=110, metadata={"Software": None})
    plt.close(plot)
    return relative_error(learned, exact, density), relative_error(denoised, posterior, density)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma-a", type=float, default=0.25, help="perturbation, in noise SDs")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    given = parser.parse_args()
    score, mean = draw(given.sigma_a, given.steps, given.figure)
    print(f"relative error of the score {100 * score:.1f} %, of the posterior mean {100 * mean:.1f} %")
    print(given.figure)


if __name__ == "__main__":
    main()
