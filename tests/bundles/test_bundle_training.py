"""Training on noisy scans: figures, weights, resuming, averaging, stopping, caching, several processes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_runs import (
    SMALL,
    TINY,
    cause,
    command,
    count_scan,
    files_of,
    network_of,
    run,
    small_bundle,
    workflow,
    write_scan,
)
from ignite.engine import Events
from monai.data import CacheDataset, PersistentDataset
from torch import Tensor

from n2s_med.bundle import (
    Best,
    DrawPatchesd,
    EpochOptimizer,
    EstimateNoised,
    HeldOutd,
    LoadScand,
    PatchLoss,
    RiskInferer,
    ScoreInferer,
    ToPatchesd,
    scan_dataset,
    scan_items,
    score_network,
)
from n2s_med.bundle.network import learned_counts
from n2s_med.bundle.transforms import OUTCOME
from n2s_med.errors import ConfigurationError, ModelError, N2SError
from n2s_med.score import TotalUnitNoise
from n2s_med.score.splitting import COUNTS, counts_of, deviance, split_risk


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """The CT bundle with a network of a moment."""
    return small_bundle("ct_gaussian", tmp_path / "ct")


@pytest.fixture
def ct_scan(tmp_path: Path) -> Path:
    """One noisy CT scan."""
    return write_scan("ct_gaussian", tmp_path / "scan.nii.gz")


def state_of(bundle: Path) -> dict[str, Tensor]:
    """The weights that a training left."""
    state: dict[str, Tensor] = torch.load(bundle / "models" / "model.pt", weights_only=True)
    return state


def test_a_bundle_trains_evaluates_and_infers(bundle, scans):
    before = state_of(bundle)
    made = run(bundle, "train", dataset_dir=str(scans), **(TINY | {"learning_rate": 0.02, "steps_per_epoch": 8}))
    assert made.trainer.state.epoch == 1
    assert math.isfinite(made.evaluator.state.metrics["risk"])
    assert state_of(bundle).keys() == before.keys()
    assert (bundle / "models" / "checkpoint_epoch=1.pt").exists()
    evaluated = run(bundle, "train", "evaluate", dataset_dir=str(scans), orientations=1, precision="fp32")
    (row,) = json.loads((bundle / "eval" / "figures.json").read_text(encoding="utf-8"))
    assert evaluated.evaluator.state.metrics["risk"] == pytest.approx(row["risk"])
    assert {"risk", "step_sure", "residual_variance", "checks_passed"} <= row.keys()
    assert "scan.nii" not in json.dumps(row)


def test_training_lowers_the_clean_free_figure(ct, ct_scan):
    biased = network_of(3)
    torch.nn.init.constant_(biased.head.bias, 0.5)
    torch.save(biased.state_dict(), ct / "models" / "model.pt")
    keys = TINY | {"epochs": 3, "steps_per_epoch": 40, "learning_rate": 0.01, "ema_decay": 0.5}
    made = workflow(ct, "train", dataset_dir=str(ct_scan), **keys)
    risks = []
    made.evaluator.add_event_handler(Events.COMPLETED, lambda engine: risks.append(engine.state.metrics["risk"]))
    made.run()
    assert len(risks) == 4
    assert min(risks[1:]) < 0.9 * risks[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(ct, ct_scan):
    states = []
    for seed in (0, 0, 1):
        torch.save(network_of(3).state_dict(), ct / "models" / "model.pt")
        made = run(ct, "train", dataset_dir=str(ct_scan), seed=seed, **TINY)
        states.append({name: tensor.clone() for name, tensor in made.network_def.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_stopped_training_goes_on(ct, ct_scan, tmp_path):
    run(ct, "train", dataset_dir=str(ct_scan), **(TINY | {"epochs": 2}))
    saved = torch.load(ct / "models" / "checkpoint_epoch=2.pt", weights_only=True)
    assert saved["optimizer"]["done"] == 4
    ends = []
    for copy in ("a", "b"):
        shutil.copytree(ct, tmp_path / copy)
        made = run(tmp_path / copy, "train", dataset_dir=str(ct_scan), resume=True, **(TINY | {"epochs": 3}))
        assert made.trainer.state.iteration == 6
        ends.append(made.network_def.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], saved["model"][name]) for name in ends[0])


def test_resuming_what_was_never_begun_is_refused(ct, ct_scan):
    with pytest.raises(Exception, match="Failed") as refused:
        run(ct, "train", dataset_dir=str(ct_scan), resume=True, **TINY)
    assert isinstance(cause(refused.value), ModelError)
    assert "no checkpoint" in str(cause(refused.value))


@pytest.mark.parametrize(
    ("key", "near"),
    [("epochz", "epochs"), ("train#trainer#max_epochz", "max_epochs"), ("train#datasett", "train#dataset")],
)
def test_a_misspelt_key_is_refused_before_anything_is_read(ct, key, near):
    with pytest.raises(RuntimeError) as refused:
        run(ct, "train", dataset_dir="/nowhere", **{key: 1})
    assert isinstance(cause(refused.value), ConfigurationError)
    assert near in str(cause(refused.value))


def test_a_key_without_effect_is_refused(ct):
    with pytest.raises(RuntimeError) as refused:
        run(ct, "train", "evaluate", dataset_dir="/nowhere", learning_rate=1)
    assert "'learning_rate' does not exist, or has no effect" in str(cause(refused.value))


def test_training_stops_early_and_keeps_the_best(tmp_path):
    network = network_of(3)
    best = Best(network, str(tmp_path / "new" / "model.pt"), patience=2)
    goes_on = []
    for risk in (0.5, 0.4, 0.45, 0.6):
        with torch.no_grad():
            network.head.bias.fill_(risk)
        goes_on.append(best.take(risk, save=True))
    assert goes_on == [True, True, True, False]
    kept = torch.load(tmp_path / "new" / "model.pt", weights_only=True)
    assert float(kept["head.bias"]) == pytest.approx(0.4)
    again = Best(network, str(tmp_path / "other.pt"), patience=2)
    again.load_state_dict(best.state_dict())
    assert not again.take(0.41, save=True)
    assert not (tmp_path / "other.pt").exists()


def test_a_training_without_gain_ends_when_its_patience_does(ct, ct_scan, monkeypatch):
    monkeypatch.setattr(EpochOptimizer, "step", lambda *_: None)
    made = run(ct, "train", dataset_dir=str(ct_scan), **(TINY | {"epochs": 9, "patience": 2, "ema_decay": 0}))
    assert made.trainer.state.epoch == 2


def test_what_is_judged_and_kept_is_the_moving_average(ct, ct_scan):
    keys = TINY | {"steps_per_epoch": 3, "learning_rate": 0.02, "ema_decay": 0.5}
    made = workflow(ct, "train", dataset_dir=str(ct_scan), **keys)
    expected = {name: p.detach().clone() for name, p in made.network_def.named_parameters()}

    def follow() -> None:
        for name, p in made.network_def.named_parameters():
            expected[name].mul_(0.5).add_(0.5 * p.detach())

    made.trainer.add_event_handler(Events.ITERATION_COMPLETED, follow)
    made.run()
    averaged = made.parser.get_parsed_content("averaged").network
    assert made.evaluator.network is averaged
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    assert any(not torch.allclose(p, expected[name]) for name, p in made.network_def.named_parameters())


def test_a_training_takes_mixed_precision_and_a_cache_on_disk(ct, ct_scan):
    ends = []
    for keys in ({}, {"cache_gib": 0}, {"precision": "bf16"}):
        torch.save(network_of(3).state_dict(), ct / "models" / "model.pt")
        made = run(ct, "train", dataset_dir=str(ct_scan), **(TINY | keys))
        ends.append(made.network_def.state_dict())
        assert isinstance(made.train_dataset, PersistentDataset if "cache_gib" in keys else CacheDataset)
    assert list((ct / "cache").glob("*.pt"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert all(torch.allclose(ends[0][name], ends[2][name], atol=0.02) for name in ends[0])


def test_a_figure_below_zero_keeps_the_weights_given(ct):
    network, file = network_of(3), str(ct / "models" / "model.pt")
    assert not Best(network, file, patience=9, given=file).take(-0.1, save=True)
    assert Best(network, file, patience=9).take(-0.1, save=True)
    assert Best(network, file, patience=9, given=file).take(-0.1, save=True, counts=True)  # split counts still judge
    best, start = Best(network, file, patience=9, given=file), float(network.head.bias)
    for risk, goes_on in ((0.2, True), (-0.01, True), (-0.3, False)):  # adapted to what is no noise
        assert best.take(risk, save=True) == goes_on
        assert (float(torch.load(file, weights_only=True)["head.bias"]) == start) == (risk in (0.2, -0.3))
        with torch.no_grad():
            network.head.bias.add_(0.5)
    assert (best.first, best.risk) == (0.2, 0.2)  # the figure is that of the weights kept


def test_weights_learned_from_few_whole_counts_are_used_as_such(tmp_path):
    pet, scan = small_bundle("pet_poisson", tmp_path / "pet"), count_scan(tmp_path / "counts.nii.gz")
    start, keys = pet / "models" / "model.pt", {"orientations": 1, "precision": "fp32", "overwrite": True}

    def inferred(**told: Any) -> tuple[bool, Tensor]:
        made = run(pet, "inference", kind="infer", dataset_dir=str(scan), **keys, **told)
        denoised = made.evaluator.state.output["pred"]
        return denoised.meta[OUTCOME].model.learned_counts, denoised.as_tensor().clone()

    assert not learned_counts(start)
    assert not inferred()[0]
    longer = TINY | {"steps_per_epoch": 20, "learning_rate": 0.02, "ema_decay": 0}
    made = run(pet, "train", dataset_dir=str(scan), **longer)
    assert made.evaluator.state.metrics["whole_counts"] == 1
    assert learned_counts(start)
    score_network(3, SMALL).load_state_dict(torch.load(start, weights_only=True))  # no key but the network's
    told, denoised = inferred()
    assert told
    state = dict(torch.load(start, weights_only=True))  # as any other tool would save them
    torch.save(state, tmp_path / "plain.pt")
    told, otherwise = inferred(ckpt_path=str(tmp_path / "plain.pt"))
    assert not told
    assert not torch.equal(denoised, otherwise)  # there the sums of neighbours decide
    stays = TINY | {"learning_rate": 1e-12}
    run(pet, "train", dataset_dir=str(scan), ckpt_dir=str(tmp_path / "again"), **stays)
    assert learned_counts(tmp_path / "again" / "model.pt")


def test_evaluation_compares_with_a_reference_where_there_is_one(ct, tmp_path):
    write_scan("ct_gaussian", tmp_path / "noisy.nii.gz")
    write_scan("ct_gaussian", tmp_path / "clean.nii.gz", clean=True)
    rows = [{"image": "noisy.nii.gz", "reference": "clean.nii.gz"}, {"image": "noisy.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({"validation": rows}), encoding="utf-8")
    run(ct, "train", "evaluate", dataset_dir=str(tmp_path / "list.json"), orientations=1, precision="fp32")
    with_reference, without = json.loads((ct / "eval" / "figures.json").read_text(encoding="utf-8"))
    assert with_reference["rmse_noisy"] == pytest.approx(20, rel=0.05)
    assert with_reference["psnr_noisy_db"] == pytest.approx(20 * math.log10(80 / with_reference["rmse_noisy"]))
    assert with_reference["rmse_denoised"] < with_reference["rmse_noisy"]
    assert "rmse_noisy" not in without


# -- the parts ---------------------------------------------------------------------------------------------


def item_of(path: Path, *, patch: int = 12, modality: str = "ct") -> dict[str, Any]:
    """A scan as a source of patches."""
    item = EstimateNoised("image", modality)(LoadScand("image")({"image": str(path)}))
    return dict(ToPatchesd("image", patch=patch)(item))


def test_patches_are_perturbed_as_the_objective_says(ct_scan):
    item = item_of(ct_scan)
    draw = DrawPatchesd("image", patches=3, sigma_a=0.5)
    draw.set_random_state(0)
    rows = draw(item)
    assert len(rows) == 3
    for row in rows:
        u, colored, weight, split = row["target"]
        torch.testing.assert_close(row["image"][0], TotalUnitNoise(0.5).perturbed(u, colored))
        assert set(weight.unique().tolist()) <= {0.0, 1.0}
        assert not split.any()
        assert row["traits"].shape == (6,)
    draw.set_random_state(0)
    assert torch.equal(draw(item)[0]["image"], rows[0]["image"])


def test_patches_of_a_scan_shorter_than_they_are_stack(ct_scan):
    draw = DrawPatchesd("image", patches=12)
    draw.set_random_state(0)
    rows = draw(item_of(ct_scan, patch=24))
    assert {tuple(row["image"].shape) for row in rows} == {(1, 24, 24, 20)}


@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_few_whole_counts_are_split(tmp_path, kept):
    item = item_of(count_scan(tmp_path / "counts.nii.gz"), modality="pet")
    draw = DrawPatchesd("image", patches=4, kept_counts=kept)
    draw.set_random_state(0)
    for row in draw(item):
        shown, rest, _, split = row["target"]
        assert split.bool().all() == split.any() == (kept > 0)
        if kept:
            torch.testing.assert_close(row["image"][0] + item["image"].centre, shown)
            assert torch.equal(rest, rest.round())
            counts = COUNTS.from_unit(shown)
            torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
            assert float(counts.sum() / (counts + rest).sum()) == pytest.approx(kept, abs=0.02)


def test_the_loss_is_that_of_each_patch_over_the_learned_voxels():
    generator = torch.Generator().manual_seed(0)
    u, colored, score = (torch.randn(2, 1, 6, 6, 6, generator=generator) for _ in range(3))
    weight = (torch.rand(2, 1, 6, 6, 6, generator=generator) > 0.3).float()
    shown, rest = COUNTS.to_unit(torch.tensor(3.0)).expand_as(u[1:]), torch.ones_like(u[1:])
    objective = TotalUnitNoise(0.5)
    errors = torch.cat(
        (
            objective.error(u[:1], objective.perturbed(u[:1], colored[:1]), score[:1], colored[:1]),
            deviance(score[1:], shown, rest, 0.75),
        )
    )
    split = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand_as(u)
    target = torch.cat((torch.cat((u[:1], shown)), torch.cat((colored[:1], rest)), weight, split), dim=1)
    torch.testing.assert_close(PatchLoss(0.5, 0.75)(score, target), errors[weight > 0].mean())
    with pytest.raises(N2SError, match="not finite"):
        PatchLoss()(score * math.nan, target)


def test_the_optimizer_takes_the_steps_of_the_packages_own():
    from n2s_med.score import ScoreOptimizer

    networks = [network_of(3), network_of(3)]
    adapted = EpochOptimizer(networks[0], 0.01, steps=4)
    own = ScoreOptimizer(networks[1], learning_rate=0.01, steps=4)
    v = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        adapted.zero_grad()
        networks[0](v).square().mean().backward()
        adapted.step()
        own.step(networks[1](v).square().mean(), step)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)
    resumed = EpochOptimizer(networks[0], 0.01, steps=4)
    resumed.load_state_dict(adapted.state_dict())
    assert resumed.done == 3


def test_the_clean_free_figure_is_one_for_a_network_that_does_nothing(ct_scan):
    def nothing(v: Tensor, traits: Tensor) -> Tensor:
        assert traits.shape == (1, 6)
        return torch.zeros_like(v)

    held_out = HeldOutd("image")(item_of(ct_scan))["image"]
    error, noise, counts, blocks = RiskInferer("cpu", "fp32")(held_out, nothing).tolist()
    assert error / noise == pytest.approx(1)
    assert int(noise) == sum(int(block.inside.sum()) for block in held_out["blocks"])
    assert (counts, blocks) == (0, len(held_out["blocks"]))


def test_the_clean_free_figure_of_few_whole_counts_is_by_splitting(tmp_path):
    held_out = HeldOutd("image")(item_of(count_scan(tmp_path / "counts.nii.gz"), modality="pet"))["image"]
    network, generator, sums = network_of(3).eval(), torch.Generator().manual_seed(0), torch.zeros(2)
    for block in held_out["blocks"]:

        def g(v: Tensor) -> Tensor:
            return network(v - held_out["centre"], torch.zeros(1, 6))

        error, variance = split_risk(g, block.u, 0.8, generator)
        sums += torch.stack([(part[block.inside] / variance.mean()).sum() for part in (error, variance)])
        assert torch.equal(counts_of(block.u), counts_of(block.u).round())
    found = RiskInferer("cpu", "fp32", kept_counts=0.8)(held_out, network)
    torch.testing.assert_close(found[:2], sums)
    assert found[2] == found[3] == len(held_out["blocks"])
    assert RiskInferer("cpu", "fp32", kept_counts=0)(held_out, network)[2] == 0


def test_mixed_precision_is_close_and_comes_back_in_float32():
    network = network_of(3).eval()
    v = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, mixed = (ScoreInferer("cpu", p)(v, network, torch.zeros(2, 6)) for p in ("fp32", "bf16"))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0)
    assert not torch.equal(mixed, exact)


def test_scans_are_kept_in_memory_or_on_disk_as_their_size_demands(ct_scan, tmp_path):
    items = scan_items(str(ct_scan))

    def made(gib: float) -> object:
        return scan_dataset(items, [LoadScand("image")], cache_dir=str(tmp_path / "cache"), cache_gib=gib)

    assert isinstance(made(8), CacheDataset)
    assert not (tmp_path / "cache").exists()
    on_disk = made(1e-9)
    assert isinstance(on_disk, PersistentDataset)
    assert torch.equal(torch.as_tensor(on_disk[0]["image"]), torch.as_tensor(made(8)[0]["image"]))
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 1
    write_scan("ct_gaussian", ct_scan, seed=1)
    changed = scan_dataset(
        scan_items(str(ct_scan)), [LoadScand("image")], cache_dir=str(tmp_path / "cache"), cache_gib=1e-9
    )
    assert not torch.equal(torch.as_tensor(changed[0]["image"]), torch.as_tensor(on_disk[0]["image"]))


# -- several processes -------------------------------------------------------------------------------------


def test_two_processes_train_together(ct, tmp_path):
    for seed in (1, 2, 3):
        write_scan("ct_gaussian", tmp_path / f"{seed}.nii.gz", seed=seed)
    kept = "$torch.save(@network.module.state_dict(), @ckpt_dir + '/rank' + str(@rank) + '.pt')"
    layer = {"finalize": [kept, "$n2s.part_processes()"]}
    (ct / "configs" / "keep.json").write_text(json.dumps(layer), encoding="utf-8")
    configs = "['configs/train.json','configs/multi_gpu_train.json','configs/keep.json']"
    words = ["--standalone", "--nproc_per_node", 2, "-m", "monai.bundle", "run", "--config_file", configs]
    keys = TINY | {"dataset_dir": str(tmp_path / "*.nii.gz"), "epochs": 2}
    overrides = [word for key, value in keys.items() for word in (f"--{key}", value)]
    done = command(ct, *words, *overrides, module="torch.distributed.run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Saved checkpoint at epoch: 2") == 1
    first, second = (torch.load(ct / "models" / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())  # they averaged their gradients
    assert any(not torch.equal(tensor, first[name]) for name, tensor in network_of(3).state_dict().items())
    state = torch.load(ct / "models" / "model.pt", weights_only=True)
    score_network(3, SMALL).load_state_dict(state)


def test_one_process_alone_is_told_to_use_torchrun(ct, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError) as refused:
        workflow(ct, "train", "multi_gpu_train", dataset_dir="/nowhere")
    assert "torchrun" in str(cause(refused.value))
    assert len(files_of(ct, "train", "multi_gpu_train")) == 2
