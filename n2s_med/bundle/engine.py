"""What MONAI's SupervisedTrainer and SupervisedEvaluator need to train a score network on noisy patches."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from n2s_med.atomic import whole
from n2s_med.errors import ConfigurationError, InputError, ModelError, N2SError
from n2s_med.score import OBJECTIVES, ScoreOptimizer
from n2s_med.score.model import save_tensors

log = logging.getLogger(__name__)

# -- batches -----------------------------------------------------------------------------------------------


def only(items: Sequence[Any]) -> Any:
    """The one item of a batch: scans differ in shape and do not stack."""
    (item,) = items
    return item


def one_scan(batch: Mapping[str, Any], *_: Any, **__: Any) -> tuple[Any, None]:
    """What an evaluator hands its inferer: the volume (1, C, X, Y, Z), or the held-out blocks as they are."""
    image = batch["image"]
    return (image[None] if isinstance(image, Tensor) else image), None


def perturbed_batch(
    batch: Mapping[str, Tensor], device: Any, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
    """What the trainer hands its inferer: perturbed patches (N, 1, spatial), targets (N, 3, spatial), traits."""
    shown, target, traits = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "target", "traits"))
    return shown, target, (traits,), {}


class PerturbationLoss(nn.Module):
    """Loss of a training objective: mean squared error over the voxels that are learned from.

    Parameters
    ----------
    objective
        A key of :data:`n2s_med.score.OBJECTIVES`.
    sigma_a
        Perturbation, in standard deviations of the noise.
    """

    def __init__(self, objective: str = "total-unit-noise", sigma_a: float = 0.5) -> None:
        super().__init__()
        self.objective = OBJECTIVES[objective](sigma_a)

    def forward(self, score: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Parameters
        ----------
        score
            The network's answer (N, 1, spatial).
        target
            Data, perturbation ``L u`` and weight (N, 3, spatial).

        Raises
        ------
        N2SError
            If the loss is not finite: NaN stops the run.
        """
        u, colored, weight = torch.split(target, 1, dim=1)
        error = self.objective.error(u, self.objective.perturbed(u, colored), score, colored)
        loss: Tensor = (error * weight).sum() / weight.sum().clamp_min(1)
        if not bool(torch.isfinite(loss)):
            raise N2SError("the training loss is not finite", remedy="lower --learning_rate, or check the scans")
        return loss


# -- weights -----------------------------------------------------------------------------------------------


class EpochOptimizer(torch.optim.Optimizer):
    """The package's optimizer (Muon and Adam under one cosine) as MONAI's trainer calls it.

    Parameters
    ----------
    network
        The score network, perhaps wrapped for several processes.
    learning_rate
        Peak learning rate of Muon.
    steps
        Length of the cosine; after that it starts anew, as in each round of federated training.
    """

    def __init__(self, network: nn.Module, learning_rate: float, steps: int) -> None:
        super().__init__(network.parameters(), {"lr": learning_rate})
        self.inner, self.done = ScoreOptimizer(network, learning_rate=learning_rate, steps=steps), 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the network by its gradients."""
        self.inner.update(self.done % self.inner.steps)
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers, and how many steps were taken."""
        return {"done": self.done, **self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.done = state_dict["done"]
        self.inner.load_state_dict(state_dict)


class Averaged:
    """An exponential moving average of the weights.

    Parameters
    ----------
    network
        The network that is trained, perhaps wrapped for several processes.
    decay
        Of the average; 0 takes the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.handler = EMAHandler(network, momentum=1 - decay) if decay else None
        self.network = self.handler.ema_model if self.handler else unwrapped(network)

    def restart(self) -> None:
        """Start from the network's weights as they are."""
        if self.handler is not None:
            self.network.load_state_dict(self.handler.model.state_dict())


class AveragingHandler:
    """Handler that averages the weights step by step.

    Parameters
    ----------
    averaged
        The average.
    """

    def __init__(self, averaged: Averaged) -> None:
        self.averaged = averaged

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Give this handler before the one that resumes."""
        if self.averaged.handler is not None:
            engine.add_event_handler(Events.STARTED, self.averaged.restart)
            self.averaged.handler.attach(engine, name="ema_momentum")


class Best:
    """The weights with the lowest clean-free figure, kept in a file, and how long ago that was.

    Parameters
    ----------
    network
        The network to keep.
    file
        Where its weights go, as MONAI keeps them: a dictionary of tensors.
    patience
        Checks without improvement after which training stops.
    given
        Whether training starts from given weights. An error cannot be below zero: where its estimate for these is,
        it can judge nothing, and they are kept.
    """

    def __init__(self, network: nn.Module, file: str, patience: int, given: bool = False) -> None:
        self.network, self.file, self.patience, self.given = network, Path(file), patience, given
        self.first: float | None = None
        self.risk, self.waited = math.inf, 0

    def take(self, risk: float, *, save: bool) -> bool:
        """Take a figure, keep the weights if it is the lowest, and say whether to go on."""
        if self.first is None:
            self.first = risk
        self.waited += 1
        if risk < self.risk:
            self.risk, self.waited = risk, 0
            if save:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                save_tensors({name: tensor.cpu() for name, tensor in self.network.state_dict().items()}, self.file)
        if self.given and self.first <= 0:
            log.warning("the clean-free figure is below zero and can judge nothing: the weights given are kept")
            return False
        return self.waited < self.patience

    def state_dict(self) -> dict[str, Any]:
        """The first figure, the lowest, and how many checks ago that was."""
        return {"first": self.first, "risk": self.risk, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.first, self.risk, self.waited = state["first"], state["risk"], state["waited"]


class BestHandler:
    """Handler that keeps the best weights and stops early.

    Parameters
    ----------
    best
        What is kept.
    evaluator
        Validation engine, whose ``risk`` decides.
    save
        Whether this process writes the file.
    """

    def __init__(self, best: Best, evaluator: Engine, save: bool) -> None:
        self.best, self.evaluator, self.save = best, evaluator, save

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        self.evaluator.add_event_handler(Events.COMPLETED, self._check, engine)

    def _check(self, trainer: Engine) -> None:
        if not self.best.take(float(self.evaluator.state.metrics["risk"]), save=self.save):
            trainer.terminate()


class ResumeHandler:
    """Handler that takes up the run that the newest checkpoint of :class:`CheckpointHandler` holds.

    Parameters
    ----------
    folder
        Where checkpoints are.
    objects
        What to restore, by name; the trainer itself is added.
    """

    def __init__(self, folder: str, objects: Mapping[str, Any]) -> None:
        self.file, self.objects = newest_checkpoint(folder), dict(objects)

    def attach(self, engine: Engine) -> None:
        """Restore as the trainer starts."""
        CheckpointLoader(self.file, {**self.objects, "trainer": engine}, map_location="cpu").attach(engine)


class CheckpointHandler:
    """Handler that keeps the newest epoch in ``checkpoint_epoch=N.pt``.

    Parameters
    ----------
    folder
        Where checkpoints go.
    objects
        What to keep, by name; the trainer itself is added.
    """

    def __init__(self, folder: str, objects: Mapping[str, Any]) -> None:
        self.folder, self.objects = folder, dict(objects)

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Give this handler after the validation, whose figures it keeps too."""
        objects = {**self.objects, "trainer": engine}
        CheckpointSaver(self.folder, objects, save_interval=1, n_saved=1).attach(engine)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, of one that is wrapped for several processes."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def newest_checkpoint(folder: str) -> str:
    """The checkpoint that a training resumes from.

    Raises
    ------
    ModelError
        If there is none.
    """
    found = sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise ModelError("no checkpoint to resume from", remedy="leave out --resume", path=folder)
    return str(found[-1])


# -- figures -----------------------------------------------------------------------------------------------


def is_lower(current: float, best: float) -> bool:
    """Whether a figure of which less is better has improved."""
    return current < best


class _Sums(Metric):
    """Sums over scans, and over processes where there are several."""

    @reinit__is_reduced
    def reset(self) -> None:
        """Start anew."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    @sync_all_reduce("sums")
    def compute(self) -> float:
        """Return the quotient of the sums."""
        if not float(self.sums[1]):
            raise InputError("no scan gave this figure", remedy="give scans with voxels to hold out")
        return float(self.sums[0] / self.sums[1])


class HeldOutRisk(_Sums):
    """Remaining error over the held-out voxels of all scans, in noise variances; the noisy scans have one."""

    def __init__(self) -> None:
        super().__init__(output_transform=lambda output: output["pred"])

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a scan: its summed error and noise variance, shape (2,)."""
        self.sums += output.double().cpu()


class FigureMean(_Sums):
    """Mean of a figure over the scans that have it.

    Parameters
    ----------
    name
        Name of the figure.
    """

    def __init__(self, name: str) -> None:
        super().__init__(output_transform=lambda output: output["figures"].get(name, math.nan))

    @reinit__is_reduced
    def update(self, output: float) -> None:
        """Add a scan; NaN says that it has no such figure."""
        if not math.isnan(output):
            self.sums += torch.tensor([output, 1.0], dtype=torch.float64)


class FiguresSaver:
    """Handler that writes the figures of every scan to ``figures.json`` as an evaluation ends.

    Parameters
    ----------
    output_dir
        Its folder; with several processes each writes a file of its own.
    """

    def __init__(self, output_dir: str) -> None:
        self.folder, self.rows = Path(output_dir), list[dict[str, Any]]()

    def attach(self, engine: Engine) -> None:
        """Collect scan by scan."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.rows.append({"scan": output["scan"], **output["figures"]})

    def _save(self) -> None:
        name = f"figures-{rank()}.json" if rank() else "figures.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / name, overwrite=True) as partial:
            partial.write_text(json.dumps(self.rows, indent=2) + "\n", encoding="utf-8")


# -- runs --------------------------------------------------------------------------------------------------


def rank() -> int:
    """Number of this process among those that train together; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_device() -> torch.device:
    """The device of this process among those that ``torchrun`` started on this machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join_processes() -> None:
    """Join the processes that ``torchrun`` started."""
    if "RANK" not in os.environ:
        raise ConfigurationError(
            "one process alone", remedy="start it with torchrun, or leave out multi_gpu_train.json"
        )
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def part_processes() -> None:
    """Wait for the others, and part: a process that leaves early makes the others fail."""
    dist.barrier()
    dist.destroy_process_group()


def run_name(bundle: str, now: Callable[[], float] = time.time) -> str:
    """A name that no other run has: unnamed runs of MLflow would join one that was left open."""
    return f"{bundle} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now()))}"
