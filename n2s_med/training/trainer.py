"""The training loop.

Everything happens in the unit-noise domain: small patches, a perturbation coloured as the noise is, flips and
permutations of like axes, Muon and a cosine. Each step draws from a generator seeded by its own number, so a run that
was killed and resumed ends with the same weights. The figure that picks the weights and stops early is SURE on
held-out voxels of the noisy volumes; no clean image is used.
"""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from n2s_med.compute import Compute, fastest_threads
from n2s_med.errors import ModelError, N2SError
from n2s_med.score.model import ScoreModel, copy_state, load_tensors, save_tensors
from n2s_med.score.network import ScoreUNet
from n2s_med.score.objectives import OBJECTIVES, Objective, TotalUnitNoise
from n2s_med.score.optimizer import ScoreOptimizer
from n2s_med.score.orientations import any_orientation
from n2s_med.score.patches import Patch, PatchSource
from n2s_med.score.splitting import are_counts, are_split, deviance, held_out_risk, split
from n2s_med.training.config import TrainingConfig

TIMED_STEPS = 8
"""Steps timed, after two to warm up, to turn a time budget into a number of steps."""

CHANCE = 0.05
"""How far below zero chance may take the estimated error, in noise variances. Where that of the weights given is lower,
or adapting takes it there, the noise is not what it is taken for, and weights are learned that keep part of it as
structure."""

CHECKPOINT = 4
"""Number of the checkpoint's form."""

TEACHINGS = 2
"""Orientations in which a teacher is asked."""

Sample = tuple[Patch, Tensor, Callable[[Tensor], Tensor]]
"""A patch, what the network is shown of it (both not yet turned), and the error per voxel of its answer."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps in all, and the newest figures."""


def impossible(error: float) -> bool:
    """Whether an estimated error is below zero, which none is, by more than chance."""
    return error <= -CHANCE


def no_progress(done: int, total: int, figures: Mapping[str, float]) -> None:
    """Show nothing."""


@dataclass
class History:
    """What a run measured, check by check: steps done, mean loss since the last check, held-out SURE.

    SURE (for whole counts, :func:`~n2s_med.score.splitting.split_risk`) is the estimated mean squared error in units
    of the noise variance.

    Attributes
    ----------
    parts
        What each held-out block adds to SURE.
    unfit
        Whether it cannot judge the weights given, which are then kept.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    parts: list[list[float]] = field(default_factory=list)
    unfit: bool = False

    @property
    def sure(self) -> list[float]:
        """SURE of each check."""
        return [sum(parts) for parts in self.parts]

    @property
    def best(self) -> int:
        """Index of the check whose weights are kept: of lowest SURE, or the newest that cannot be told from it.

        Weights settle as the learning rate falls, while on smooth volumes SURE differs by chance alone. Weights that
        were given are left for those alone that can be told to be better.
        """
        given = not self.step[0]
        better = [n for n in range(len(self.step)) if not given or self._lower(n, 0)]
        if self.unfit or not better:
            return 0
        lowest = min(better, key=self.sure.__getitem__)
        return max(n for n in better if n >= lowest and not self._lower(lowest, n))

    def _lower(self, one: int, other: int) -> bool:
        """Whether a check's SURE is lower than another's by more than a standard error, between blocks."""
        differences = [a - b for a, b in zip(self.parts[one], self.parts[other], strict=True)]
        error = statistics.stdev(differences) * len(differences) ** 0.5 if len(differences) > 1 else 0.0
        return sum(differences) < -error

    def newest(self) -> dict[str, float]:
        """The newest loss and SURE, if there are any."""
        return {"loss": self.loss[-1], "sure": self.sure[-1]} if self.step else {}


class Trainer:
    """One training run.

    Parameters
    ----------
    source
        Where the patches come from.
    config
        How to train.
    compute
        Device and number type.
    directory
        Where ``checkpoint.pt`` is kept, from which a killed run resumes; ``None`` keeps none.
    network
        Weights to start from, which are kept where training does not improve on them; a new network otherwise.
    teacher
        A network whose mean over all orientations is learned, in place of the perturbation, which is then of any
        strength up to ``config.sigma_a``, total-unit-noise, and neither antithetic nor a split of counts.
    """

    def __init__(
        self,
        source: PatchSource,
        config: TrainingConfig,
        compute: Compute,
        *,
        directory: Path | None = None,
        network: ScoreUNet | None = None,
        teacher: ScoreUNet | None = None,
    ) -> None:
        self.source, self.config, self.compute = source, config, compute
        self.objective: Objective = OBJECTIVES[config.objective](config.sigma_a)
        self.teacher = copy.deepcopy(teacher).to(compute.device).eval().requires_grad_(False) if teacher else None
        self.checkpoint = directory / "checkpoint.pt" if directory else None
        self.fine_tuning = network is not None
        self.network = (network or _new_network(source, config)).to(compute.device).train()
        self.identity = self._identity()
        self.history = History()
        self.done, self.steps, self.pending = 0, config.steps, 0.0
        self.spent_s, self.began = 0.0, time.perf_counter()
        self.given = self.best = copy_state(self.network)
        self.average = copy_state(self.network) if config.ema else None
        self.resumed = self._load()
        if not self.resumed:
            self.steps = config.steps or self._steps_in_budget()
            self.optimizer = self._new_optimizer(self.network, self.steps)
            self._save()  # a run killed from here on has as many steps when it is taken up

    def run(self, progress: Progress = no_progress) -> ScoreUNet:
        """Train to the end of the budget or to an early stop; return the network with its best weights.

        Raises
        ------
        N2SError
            If the loss is not finite: NaN stops the run.
        """
        if self.fine_tuning and not self.history.step:
            self._check()
        while self.done < self.steps and not self._stalled():
            self.pending += self._one_step(self.network, self.optimizer, self.done)
            self.done += 1
            if self.done % self._interval == 0 or self.done == self.steps:
                self._check()
            progress(self.done, self.steps, self.history.newest())
        self.network.load_state_dict(self.best)
        return self.network.eval()

    def trained(self, progress: Progress = no_progress) -> ScoreModel:
        """:meth:`run`, and what came of it as a model of any modality and law."""
        network = self.run(progress)
        return ScoreModel(network, self.objective.scale, learned_counts=self.learned_counts)

    @property
    def seconds(self) -> float:
        """Time that the run has taken, that of a run that was killed up to its last checkpoint."""
        return self.spent_s + time.perf_counter() - self.began

    @property
    def learned_counts(self) -> bool:
        """Whether the best weights were learned from whole counts, split where they are few."""
        return self.history.step[self.history.best] > 0 and self._all_counts and not self.teacher

    # -- one step --------------------------------------------------------------------------------------

    def _one_step(self, network: ScoreUNet, optimizer: ScoreOptimizer, step: int) -> float:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        self.source.begin(step)
        loss = self._loss(network, generator)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise N2SError(
                f"the training loss is not finite at step {step}",
                remedy="lower --learning-rate, or check the noise level of the scan",
            )
        optimizer.step(loss, step)
        if self.average is not None:
            for name, tensor in network.state_dict().items():
                self.average[name].lerp_(tensor, 1 - self.config.ema)
        return value

    def _loss(self, network: ScoreUNet, generator: torch.Generator) -> Tensor:
        """Mean loss over the patches of a step, each under its own perturbation (or an antithetic pair)."""
        samples: list[Sample] = []
        for _ in range(self.config.patches):
            patch = self.source.draw(generator)
            counted = are_split(patch, self.config.kept_counts)
            chosen = self._taught if self.teacher else self._split if counted else self._perturbed
            samples += chosen(patch, generator)
        turned = [patch.augment(shown) for patch, shown, _ in samples]
        scores = self._scores(network, turned, [patch.noise.correlation.traits for patch, *_ in samples])
        total = count = torch.zeros((), device=self.compute.device)
        for (patch, _, error), score in zip(samples, scores, strict=True):
            weight = patch.weight.to(self.compute.device)
            total = total + (error(patch.restore(score)) * weight).sum()
            count = count + weight.sum()
        return total / count.clamp_min(1)

    @property
    def _all_counts(self) -> bool:
        """Whether all of the data are whole counts that may be split."""
        return all(are_counts(block, self.config.kept_counts) for block in self.source.held_out)

    def _perturbed(self, patch: Patch, generator: torch.Generator) -> list[Sample]:
        """A patch under one perturbation, or an antithetic pair."""
        drawn = patch.noise.correlation.color(torch.randn(patch.u.shape, generator=generator))

        def sample(colored: Tensor) -> Sample:
            v = self.objective.perturbed(patch.u, colored)
            given = [t.to(self.compute.device) for t in (patch.u, v, colored)]
            return patch, v, lambda score: self.objective.error(given[0], given[1], score, given[2])

        return [sample(drawn), sample(-drawn)] if self.config.antithetic else [sample(drawn)]

    def _taught(self, patch: Patch, generator: torch.Generator) -> list[Sample]:
        """A patch under a perturbation of any strength, and the teacher's answers to it in two orientations.

        These are drawn from all there are, so that what is learned is the mean over all, in one pass.
        """
        assert self.teacher is not None
        strength = self.config.sigma_a * float(torch.rand((), generator=generator))
        drawn = patch.noise.correlation.color(torch.randn(patch.u.shape, generator=generator))
        v = TotalUnitNoise(strength).perturbed(patch.u, drawn)
        ways = [any_orientation(v.ndim - 2, generator) for _ in range(TEACHINGS)]
        with torch.no_grad():
            traits = [patch.noise.correlation.permuted(way.order).traits for way in ways]
            answers = self._scores(self.teacher, [way.laid(v) for way in ways], traits)
        taught = torch.stack([way.restored(answer) for way, answer in zip(ways, answers, strict=True)]).mean(dim=0)
        return [(patch, v, lambda score: (score - taught).square())]

    def _split(self, patch: Patch, generator: torch.Generator) -> list[Sample]:
        """A patch of whole counts, split once; where others are perturbed in pairs twice, leaving none out twice."""
        kept = self.config.kept_counts

        def sample(shown: Tensor, rest: Tensor) -> Sample:
            given = [t.to(self.compute.device) for t in (shown, rest)]
            return patch, shown, lambda score: deviance(self.objective.scale * score, given[0], given[1], kept)

        return [sample(*pair) for pair in split(patch.u, kept, 2 if self.config.antithetic else 1, generator)]

    def _scores(self, network: ScoreUNet, shown: Sequence[Tensor], traits: Sequence[Tensor]) -> Sequence[Tensor]:
        """The network's answers, in one batch where the patches are of one shape."""
        if len({v.shape for v in shown}) > 1:
            return [self._answer(network, v, known[None]) for v, known in zip(shown, traits, strict=True)]
        return list(self._answer(network, torch.cat(list(shown)), torch.stack(list(traits))).unsqueeze(1))

    def _answer(self, network: ScoreUNet, batch: Tensor, traits: Tensor) -> Tensor:
        with self.compute.autocast():
            answer: Tensor = network(self.compute.place(batch), traits.to(self.compute.device))
        return answer.float()

    # -- checks, early stop ----------------------------------------------------------------------------

    @property
    def _interval(self) -> int:
        return max(1, self.steps // self.config.checks)

    def _check(self) -> None:
        """Measure SURE, keep the weights if they are the best, write a checkpoint."""
        self.history.step.append(self.done)
        steps = self.done - sum(self.history.step[-2:-1])
        self.history.loss.append(self.pending / steps if steps else float("nan"))
        self.pending = 0.0
        current = self.average or self.network.state_dict()
        self.history.parts.append(self._held_out_parts(current))
        if self._unfit(self.history.sure[-1]):
            self.history.unfit, self.best = True, self.given
        elif self.history.best == len(self.history.step) - 1:
            self.best = {name: tensor.detach().clone() for name, tensor in current.items()}
        self._save()

    @torch.no_grad()
    def _held_out_parts(self, state: Mapping[str, Tensor]) -> list[float]:
        """SURE over the held-out voxels by its blocks; the same probes at every check, so that checks compare."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(state)
        network.eval()
        generator = torch.Generator().manual_seed(self.config.seed)
        risks, noise = [], 0.0
        for block in self.source.held_out:
            traits = block.noise.correlation.traits[None]

            def g(v: Tensor, traits: Tensor = traits) -> Tensor:
                return self._answer(network, v, traits).cpu() * self.objective.scale

            error, variance = held_out_risk(g, block, self.config.kept_counts, generator)
            scale = float(variance.mean())
            risks.append(float(error[block.inside].sum()) / scale)
            noise += float(variance[block.inside].sum()) / scale
        return [risk / noise for risk in risks] if noise else self.history.loss[-1:]

    def _stalled(self) -> bool:
        """Whether SURE has not improved for ``patience`` checks, or cannot judge."""
        if not self.history.step:
            return False
        return self.history.unfit or len(self.history.step) - self.history.best > self.config.patience

    def _unfit(self, sure: float) -> bool:
        """Whether SURE cannot judge the weights given.

        An error cannot be below zero: where its estimate is, by more than chance, the noise is not what it is taken
        for, and it would as soon choose worse ones. (By count splitting it may be, and still chooses.)
        """
        return self.fine_tuning and impossible(sure) and not self._all_counts

    # -- budget ----------------------------------------------------------------------------------------

    def _new_optimizer(self, network: ScoreUNet, steps: int) -> ScoreOptimizer:
        config = self.config
        return ScoreOptimizer(network, learning_rate=config.learning_rate, momentum=config.momentum, steps=steps)

    def _steps_in_budget(self) -> int:
        """How many steps fit ``config.seconds``, timed on a copy that is then thrown away.

        All threads are tried against one, which is faster where the machine is busy: the steps are small.
        """
        trial = copy.deepcopy(self.network)
        optimizer = self._new_optimizer(trial, 1000)
        average, self.average = self.average, None

        def step_time() -> float:
            for step in range(2):
                self._one_step(trial, optimizer, step)
            start = time.perf_counter()
            for step in range(TIMED_STEPS):
                self._one_step(trial, optimizer, step)
            return (time.perf_counter() - start) / TIMED_STEPS

        fastest = fastest_threads(step_time)
        self.average = average
        return max(self.config.checks, int(self.config.seconds / fastest))

    # -- checkpoints -----------------------------------------------------------------------------------

    def _identity(self) -> str:
        """Hash of everything that determines the run but its budget in seconds."""
        keys = {key: value for key, value in asdict(self.config).items() if key != "seconds"}
        digest = hashlib.sha256(json.dumps([CHECKPOINT, keys], sort_keys=True).encode())
        digest.update(ScoreModel(self.network).hash.encode())
        digest.update(self.source.fingerprint().encode())
        if self.teacher:
            digest.update(ScoreModel(self.teacher).hash.encode())
        return digest.hexdigest()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        content: dict[str, Any] = {
            "identity": self.identity,
            "done": self.done,
            "steps": self.steps,
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "best": self.best,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "history": asdict(self.history),
        }
        save_tensors(content, self.checkpoint)

    def _load(self) -> bool:
        """Take up the run that the checkpoint holds, if there is one.

        Raises
        ------
        ModelError
            If it belongs to other data or another configuration.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        remedy = "give another --out, or --overwrite to start anew"
        try:
            saved = load_tensors(self.checkpoint)
        except ModelError as error:
            raise ModelError("the checkpoint is damaged", remedy=remedy, path=self.checkpoint) from error
        if saved.get("identity") != self.identity:
            raise ModelError(
                "the checkpoint belongs to other scans, other training keys or another version",
                remedy=remedy,
                path=self.checkpoint,
            )
        self.done, self.steps = saved["done"], saved["steps"]
        torch.set_num_threads(saved["threads"])
        self.spent_s = saved["seconds"]
        self.best, self.average = saved["best"], saved["average"]
        self.history = History(**saved["history"])
        self.network.load_state_dict(saved["network"])
        self.optimizer = self._new_optimizer(self.network, self.steps)
        self.optimizer.load_state_dict(saved["optimizer"])
        return True


def _new_network(source: PatchSource, config: TrainingConfig) -> ScoreUNet:
    """A network initialised from the seed, centred on the median of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ScoreUNet(source.spatial_dims, config.channels)
    network.centre.fill_(source.centre)
    return network
