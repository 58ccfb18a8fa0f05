"""Training: the same weights after any interruption, nothing from held-out voxels, and it learns."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_networks import random_network
from torch import Tensor, nn

from n2s_med.compute import Compute
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.errors import InputError, ModelError, N2SError
from n2s_med.noise import Gaussian, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel, ScoreUNet
from n2s_med.score.orientations import Orientation
from n2s_med.training import History, PatchSampler, Trainer, TrainingConfig, UnitVolume
from n2s_med.training.trainer import Progress

CPU = Compute(torch.device("cpu"), bf16=False)
STEPS = 12
CONFIG = TrainingConfig(steps=STEPS, patch=8, channels=(3, 4), checks=4, held_out=0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(*shape: int, seed: int = 0, noise: ScanNoise | None = None) -> UnitVolume:
    u = 3 * torch.rand(shape, generator=seeded(seed)) + torch.randn(shape, generator=seeded(seed + 1))
    own = noise or ScanNoise(Gaussian(1.0), Correlation.white(len(shape)))
    return UnitVolume(u, torch.ones(shape, dtype=torch.bool), own, (1.0,) * len(shape))


def of(
    volumes: Sequence[UnitVolume],
    config: TrainingConfig,
    directory: Path | None = None,
    network: ScoreUNet | None = None,
    teacher: ScoreUNet | None = None,
) -> Trainer:
    source = PatchSampler(volumes, edge=config.patch, held_out=config.held_out, seed=config.seed)
    return Trainer(source, config, CPU, directory=directory, network=network, teacher=teacher)


def trainer(
    directory: Path | None = None, config: TrainingConfig = CONFIG, network: ScoreUNet | None = None
) -> Trainer:
    return of([volume(14, 13), volume(16, 9, seed=5)], config, directory, network)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


def kill_at(step: int) -> Progress:
    def progress(done: int, total: int, figures: Mapping[str, float]) -> None:  # noqa: ARG001
        if done == step:
            raise Killed

    return progress


# -- kill and resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.6])
@pytest.mark.parametrize("stops", [[1], [3], [4], [11], [12], [2, 5, 7, 11]], ids=str)
def test_resumed_run_ends_with_the_same_weights(tmp_path: Path, stops: list[int], ema: float) -> None:
    config = replace(CONFIG, ema=ema, patches=2)
    undisturbed = trainer(None, config)
    wanted = weights(undisturbed.run())
    for stop in stops:
        with pytest.raises(Killed):
            trainer(tmp_path, config).run(kill_at(stop))
    last = trainer(tmp_path, config)
    assert last.resumed
    assert last.done == max(stops) // 3 * 3
    assert same(weights(last.run()), wanted)
    assert last.history == undisturbed.history


def test_finished_run_is_taken_as_it_is(tmp_path: Path) -> None:
    wanted = weights(trainer(tmp_path).run())
    again = trainer(tmp_path)
    assert again.done == STEPS
    assert same(weights(again.run(kill_at(STEPS + 1))), wanted)


def stalling(figures: list[float]) -> Callable[[Trainer, Mapping[str, Tensor]], list[float]]:
    return lambda self, state: [figures[len(self.history.step) - 1]]  # noqa: ARG005


@pytest.mark.parametrize("stop", [None, 5, 7])
def test_early_stop_and_resume(tmp_path: Path, stop: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best check's weights come back, no step is done after the stop, interrupted or not."""
    monkeypatch.setattr(Trainer, "_held_out_parts", stalling([0.5, 0.3, 0.4, 0.6, 0.2, 0.1]))
    config = replace(CONFIG, checks=6, patience=1)
    kept: dict[int, dict[str, Tensor]] = {}
    first = trainer(None, config)

    def keep(done: int, total: int, figures: Mapping[str, float]) -> None:  # noqa: ARG001
        kept[done] = weights(first.network)

    first.run(keep)
    assert first.done == max(kept) == 6
    assert first.history.sure == [0.5, 0.3, 0.4]
    assert first.history.best == 1
    assert same(weights(first.network), kept[4])
    if stop:
        killed = trainer(tmp_path, config)
        if stop < 6:
            with pytest.raises(Killed):
                killed.run(kill_at(stop))
        else:
            killed.run()
        again = trainer(tmp_path, config)
        assert again.resumed
        assert same(weights(again.run(kill_at(7))), kept[4])
        assert again.history == first.history


def test_killed_while_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = weights(trainer().run())
    real, calls = torch.save, itertools.count(1)

    def dying(content: object, target: object) -> None:
        real(content, target)
        if next(calls) == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", dying)
        with pytest.raises(Killed):
            trainer(tmp_path).run()
    again = trainer(tmp_path)
    assert again.done == 6
    assert same(weights(again.run()), wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_same_seed_same_weights() -> None:
    assert same(weights(trainer().run()), weights(trainer().run()))
    other = replace(CONFIG, seed=1)
    assert not same(weights(trainer().run()), weights(trainer(None, other).run()))


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    trainer().run()
    assert torch.equal(torch.rand(4), wanted)


# -- whose checkpoint ----------------------------------------------------------------------------------


def test_checkpoint_of_other_data_or_keys_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(ModelError, match=r"other scans, other training keys or another version\. Give another --out"):
        of([volume(14, 13)], CONFIG, tmp_path)
    for key, value in (("steps", 13), ("seed", 2), ("sigma_a", 0.4), ("patch", 7)):
        with pytest.raises(ModelError, match="other training keys"):
            trainer(tmp_path, replace(CONFIG, **{key: value}))  # type: ignore[arg-type]
    assert trainer(tmp_path, replace(CONFIG, seconds=1.0)).resumed


def test_checkpoint_of_other_base_weights_is_refused(tmp_path: Path) -> None:
    """Adapting one base model must not go on from another's checkpoint."""

    def base(seed: int) -> ScoreUNet:
        torch.manual_seed(seed)
        return ScoreUNet(2, (3, 4))

    trainer(tmp_path, network=base(0)).run()
    assert trainer(tmp_path, network=base(0)).resumed
    with pytest.raises(ModelError, match="other"):
        trainer(tmp_path, network=base(1))


@pytest.mark.parametrize(
    ("figures", "kept"),
    [((0.3, 0.4, 0.5, 0.6), True), ((0.3, 0.4, 0.2, 0.6), False), ((-0.01, 0.4, -0.04, 0.6), False)],
)
def test_the_better_of_given_and_adapted_weights_is_kept(
    monkeypatch: pytest.MonkeyPatch, figures: tuple[float, ...], kept: bool
) -> None:
    told = iter((*figures, 0.9))
    monkeypatch.setattr(Trainer, "_held_out_parts", lambda *_: [next(told)])
    torch.manual_seed(0)
    given = ScoreUNet(2, (3, 4))
    run = trainer(None, replace(CONFIG, steps=4, checks=4), network=copy.deepcopy(given))
    assert same(weights(run.run()), weights(given)) == kept
    assert run.history.step == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("parts", "best"),
    [
        ([[0.5, 0.5], [0.3, 0.1], [0.1, 0.32], [0.4, 0.5]], 2),  # the third is 0.02 above the second, give or take 0.59
        ([[0.5, 0.5], [0.3, 0.1], [0.31, 0.11], [0.32, 0.13]], 1),  # by 0.02, give or take nothing
        ([[0.5, 0.5], [0.1, 0.2], [0.0, 0.1], [0.3, 0.0]], 3),
        ([[0.1, 0.2], [0.3, 0.1], [0.0, 0.4], [0.1, 0.3]], 0),  # nothing is better than the weights given
        ([[0.2, 0.2], [0.3, 0.0], [0.1, 0.31], [0.0, 0.45]], 0),  # better by 0.1, give or take 0.3
        ([[0.5], [0.2], [0.201], [0.3]], 1),  # a single block tells no scatter
    ],
)
def test_newest_of_weights_that_cannot_be_told_apart(parts: list[list[float]], best: int) -> None:
    history = History(step=[0, 2, 4, 6], loss=[0.0] * 4, parts=parts)
    assert history.best == best
    assert not replace(history, unfit=True).best


def test_a_figure_below_zero_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error below zero is none: the weights given stay, and no step is wasted."""
    monkeypatch.setattr(Trainer, "_held_out_parts", lambda *_: [-0.1])
    torch.manual_seed(0)
    given = ScoreUNet(2, (3, 4))
    run = trainer(None, network=copy.deepcopy(given))
    assert same(weights(run.run()), weights(given))
    assert run.done == 0
    scratch = trainer(None)
    scratch.run()
    assert scratch.done == STEPS


@pytest.mark.parametrize(("lowest", "kept"), [(-0.04, False), (-0.3, True)])
def test_an_error_far_below_zero_undoes_the_adaptation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lowest: float, kept: bool
) -> None:
    """The noise is not what it is taken for: weights that keep it as structure would be chosen."""
    figures = [0.2, 0.1, lowest]
    torch.manual_seed(0)
    given = ScoreUNet(2, (3, 4))
    told = iter(figures)
    monkeypatch.setattr(Trainer, "_held_out_parts", lambda *_: [next(told)])
    config = replace(CONFIG, steps=4, checks=2)
    run = trainer(tmp_path, config, network=copy.deepcopy(given))
    assert same(weights(run.run()), weights(given)) == kept
    assert run.history.unfit == kept
    assert (run.history.step[run.history.best] == 0) == kept
    assert same(weights(trainer(tmp_path, config, network=copy.deepcopy(given)).run()), weights(given)) == kept


@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_whole_counts_are_split_and_chosen_by_what_is_left_over(kept: float) -> None:
    """Adaptation where an error estimated by Stein's identity is below zero: a few counts on a smooth ground."""
    x = 0.6 + 0.25 * blobs(24)
    noise = ScanNoise(Poisson(1.0), Correlation.white(3), 1.0)
    y = noise.law.sample(x, seeded(2))
    one = UnitVolume(noise.law.to_unit(y), torch.ones_like(y, dtype=torch.bool), noise, (1.0, 1.0, 1.0))
    config = TrainingConfig(steps=60, patch=16, channels=(8, 12), checks=4, kept_counts=kept, held_out=0.1)
    run = of([one], config)
    learned = run.run()
    assert run.learned_counts == (kept > 0)
    again = of([one], replace(config, steps=8), network=copy.deepcopy(learned))
    assert again._unfit(-0.1) == (kept == 0)
    model = ScoreModel(learned, run.objective.scale, learned_counts=run.learned_counts)
    options = DenoiseOptions(orientations=1, few_counts=False)
    x_hat = Denoiser(model, noise, CPU, options)(y).x_hat
    error = float((x_hat - x).square().mean() / (y - x).square().mean())
    assert error < 0.08 or not kept


def test_damaged_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="damaged"):
        trainer(tmp_path)


# -- budget --------------------------------------------------------------------------------------------


def test_time_budget_becomes_steps_that_are_recorded(tmp_path: Path) -> None:
    timed = replace(CONFIG, steps=0, seconds=0.2)
    first = trainer(tmp_path, timed)
    assert first.steps >= CONFIG.checks
    total = first.steps
    with pytest.raises(Killed):
        first.run(kill_at(total // 2 + 1))
    again = trainer(tmp_path, replace(timed, seconds=50.0))
    assert again.resumed
    assert again.steps == total


def test_timing_leaves_no_trace() -> None:
    """A run whose steps came from a time budget equals one that was given these steps."""
    timed = trainer(None, replace(CONFIG, steps=0, seconds=0.05, ema=0.5))
    given = trainer(None, replace(CONFIG, steps=timed.steps, ema=0.5))
    assert same(weights(timed.run()), weights(given.run()))


# -- what is refused -----------------------------------------------------------------------------------


def test_nothing_to_train_on() -> None:
    with pytest.raises(InputError, match="no volume to train on"):
        of([], CONFIG)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run(bad: float) -> None:
    spoiled = volume(10, 10)
    spoiled.u[4:6] = bad
    with pytest.raises(N2SError, match=r"not finite at step \d+\. Lower --learning-rate") as caught:
        of([spoiled], replace(CONFIG, held_out=0.0)).run()
    assert "\n" not in str(caught.value)


# -- what a step uses ----------------------------------------------------------------------------------


class Pointwise(nn.Module):
    """A network that sees one voxel at a time, so that no context blurs what reaches the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(-0.5))

    def forward(self, v: Tensor, traits: Tensor) -> Tensor:  # noqa: ARG002
        return self.slope * v


def gradients(one: UnitVolume, config: TrainingConfig) -> list[float]:
    run, network = of([one], config), Pointwise()
    losses = [run._loss(network, seeded(step)) for step in range(10)]  # type: ignore[arg-type]
    return [float(torch.autograd.grad(loss, network.slope)[0]) for loss in losses]


def test_held_out_voxels_do_not_reach_the_gradient() -> None:
    config = replace(CONFIG, held_out=0.3, patch=10)
    one = volume(20, 20)
    held = ~PatchSampler([one], edge=config.patch, held_out=0.3, seed=config.seed).weights[0]
    assert 0.2 < float(held.float().mean()) < 0.5
    changed = replace(one, u=torch.where(held, one.u.flip(0, 1), one.u))
    assert not torch.equal(changed.u, one.u)
    assert gradients(changed, config) == gradients(one, config)
    control = replace(one, u=torch.where(held, one.u, one.u + 0.5))
    assert gradients(control, config) != gradients(one, config)


def test_padding_does_not_reach_the_gradient() -> None:
    config = replace(CONFIG, held_out=0.0, patch=10)
    one = volume(20, 20)
    valid = torch.ones(20, 20, dtype=torch.bool)
    valid[:4] = False
    padded = replace(one, valid=valid)
    changed = replace(padded, u=torch.where(valid, one.u, 100.0))
    assert gradients(changed, config) == gradients(padded, config)


def test_pair_is_antithetic_and_colored() -> None:
    """What the network is shown: the patch with ``+L u`` and with ``-L u``."""
    correlation = Correlation.from_kernel(torch.tensor([[0.5, 1.0, 0.5]]))
    one = volume(300, 300, noise=ScanNoise(Gaussian(1.0), correlation))
    run = of([one], replace(CONFIG, patch=300, patches=1, antithetic=True, held_out=0.0))
    shown: list[Tensor] = []
    told: list[Tensor] = []

    class Spy(Pointwise):
        def forward(self, v: Tensor, traits: Tensor) -> Tensor:
            shown.append(v.detach().clone())
            told.append(traits)
            return super().forward(v, traits)

    run._loss(Spy(), seeded())  # type: ignore[arg-type]
    (pair,) = shown
    assert torch.equal(told[0], correlation.traits.expand(2, -1))
    added = (pair[0, 0] - pair[1, 0]) / 2 / 0.5
    assert float(added.var()) == pytest.approx(1, abs=0.03)
    along = {a: float((added * added.roll(1, a)).mean()) for a in (0, 1)}
    assert along[1] == pytest.approx(correlation.autocorrelation((0, 1)), abs=0.03)
    assert along[0] == pytest.approx(0, abs=0.03)
    assert sorted(pair.mean(0).flatten().tolist())[::5000] == pytest.approx(
        sorted(one.u.flatten().tolist())[::5000], abs=1e-4
    )


def test_average_of_the_weights() -> None:
    """EMA by its definition, from the initial weights on."""
    run = trainer(None, replace(CONFIG, ema=0.7, checks=1))
    average = weights(run.network)

    def follow(done: int, total: int, figures: Mapping[str, float]) -> None:  # noqa: ARG001
        for name, tensor in run.network.state_dict().items():
            average[name] = 0.7 * average[name] + 0.3 * tensor

    result = weights(run.run(follow))
    for name, tensor in average.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-6)


def test_progress_tells_steps_and_figures() -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    run = trainer()
    run.run(lambda done, total, figures: seen.append((done, total, dict(figures))))
    assert [s[:2] for s in seen] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert seen[0][2] == {}
    assert seen[-1][2] == {"loss": run.history.loss[-1], "sure": run.history.sure[-1]}
    assert run.history.step == [3, 6, 9, 12]


def test_loss_recorded_is_the_mean_since_the_last_check(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter(range(1, STEPS + 1))
    monkeypatch.setattr(Trainer, "_one_step", lambda *_: float(next(losses)))
    run = trainer()
    run.run()
    assert run.history.loss == [2, 5, 8, 11]


@pytest.mark.parametrize("shape", [(1, 1, 2), (9, 8, 1), (3, 30, 2), (6, 40), (1, 9)], ids=str)
def test_any_shape_trains(shape: tuple[int, ...]) -> None:
    run = of([volume(*shape)], replace(CONFIG, steps=3))
    before = weights(run.network)
    run.run()
    assert all(map(torch.isfinite, map(torch.tensor, run.history.sure)))
    assert not same(weights(run.network), before) or run.history.best == 0


def test_starts_centred_on_the_data() -> None:
    assert float(trainer().network.centre) == pytest.approx(float(volume(14, 13).u.median()), abs=0.3)


# -- it learns -----------------------------------------------------------------------------------------


def blobs(size: int) -> Tensor:
    """A few smooth balls of several noise SDs on a dark ground."""
    axis = torch.arange(size, dtype=torch.float32)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    signal = torch.zeros(size, size, size)
    places = torch.rand(8, 4, generator=seeded(9))
    for a, b, c, r in places.tolist():
        distance = ((x - a * size) ** 2 + (y - b * size) ** 2 + (z - c * size) ** 2).sqrt()
        signal = signal + 6 * torch.sigmoid((3 + 5 * r - distance) / 0.7)
    return signal


@pytest.mark.parametrize("law", [Gaussian(0.5), Poisson(0.05)], ids=str)
def test_it_learns_and_knows_how_well(law: Gaussian | Poisson) -> None:
    """Half a minute's worth of steps in seconds: several dB, and SURE tells the true error."""
    x = 1 + blobs(32)
    y = law.sample(x, seeded(1))
    noise = ScanNoise(law, Correlation.white(3))
    one = UnitVolume(law.to_unit(y), torch.ones_like(y, dtype=torch.bool), noise, (1.0, 1.0, 1.0))
    config = TrainingConfig(steps=80, patch=16, channels=(8, 12), checks=4)
    run = of([one], config)
    network = run.run()
    result = Denoiser(ScoreModel(network, run.objective.scale), noise, CPU, DenoiseOptions(orientations=1))(y)
    before, after = float((y - x).square().mean()), float((result.x_hat - x).square().mean())
    assert 10 * torch.log10(torch.tensor(before / after)) > 6
    assert result.figures.risk == pytest.approx(after / before, abs=0.05)
    assert run.history.sure[-1] < 0.5
    assert result.figures.step_sure == pytest.approx(1, abs=0.25)


# -- a teacher ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlated", [False, True])
def test_one_pass_learns_the_mean_of_the_teacher_over_all_orientations(correlated: bool) -> None:
    kernel = torch.tensor([[0.36], [0.86], [0.36]]) if correlated else torch.ones(1, 1)
    noise = ScanNoise(Gaussian(1.0), Correlation(kernel / kernel.square().sum().sqrt()))
    scan, teacher = volume(16, 16, noise=noise), random_network(2, (3, 4))
    config = replace(CONFIG, objective="total-unit-noise", steps=150, learning_rate=0.01, sigma_a=0.5)
    student = of([scan], config, network=copy.deepcopy(teacher), teacher=teacher).run()
    every = [Orientation(order, flips) for order in ((0, 1), (1, 0)) for flips in ((), (0,), (1,), (0, 1))]
    with torch.no_grad():
        v, traits = scan.u[None, None], noise.correlation.traits[None]
        mean = torch.stack([way.of(teacher)(v, traits) for way in every]).mean(dim=0)
        apart = [float((network(v, traits) - mean).square().mean()) for network in (teacher, student)]
    assert apart[1] < 0.4 * apart[0]


class ByFirstAxis(ScoreUNet):
    """Answers with the volume times the correlation of neighbours along its first axis."""

    def forward(self, v: Tensor, traits: Tensor | None = None) -> Tensor:
        """The volume, scaled."""
        assert traits is not None
        return traits[:, 0].view(-1, 1, 1, 1) * v


def test_the_teacher_is_told_the_noise_as_the_volume_lies() -> None:
    """Noise that correlates along one axis, perturbed by up to a half: asked twice, each time along either axis."""
    kernel = torch.tensor([[0.36], [0.86], [0.36]])
    noise = ScanNoise(Gaussian(1.0), Correlation(kernel / kernel.square().sum().sqrt()))
    config = replace(CONFIG, objective="total-unit-noise", sigma_a=0.5)
    run, along = of([volume(16, 16, noise=noise)], config, teacher=ByFirstAxis(2, (3, 4))), noise.correlation.traits[0]
    patch, told, strengths = run.source.draw(seeded()), set(), []
    for seed in range(20):
        ((_, v, error),) = run._taught(patch, seeded(seed))
        told.add(round(float((error(torch.zeros_like(v)).mean() / v.square().mean()).sqrt() / along), 3))
        strengths.append(float((v - patch.u).square().mean().sqrt()))
    assert told == {0.0, 0.5, 1.0}
    assert max(strengths) > 3 * min(strengths)


def test_a_run_of_another_teacher_is_not_taken_up(tmp_path: Path) -> None:
    scans, config = [volume(14, 13)], replace(CONFIG, objective="total-unit-noise")
    of(scans, config, tmp_path, teacher=random_network(2, (3, 4)))
    of(scans, config, tmp_path, teacher=random_network(2, (3, 4)))
    with pytest.raises(ModelError, match="belongs to other"):
        of(scans, config, tmp_path, teacher=random_network(2, (4, 4)))
