"""MONAI's own commands and clients over every bundle, from its folder and from elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from bundle_runs import DIMS, SMALL, TINY, command, files_of, network_of, small_bundle, workflow, write_scan
from monai.bundle import ckpt_export, load, onnx_export, verify_net_in_out
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from n2s_med.bundle import score_network
from n2s_med.score import ScoreUNet

SHAPES = {3: [(2, 1, 16, 20, 24), (1, 1, 9, 17, 12)], 2: [(2, 1, 16, 20), (1, 1, 9, 17)]}


def metadata(bundle: Path) -> str:
    """The metadata file of a bundle."""
    return str(bundle / "configs" / "metadata.json")


def test_properties_are_all_there(bundle, scans):
    for configs, kind in ((("train",), "train"), (("train", "evaluate"), "train"), (("inference",), "infer")):
        assert workflow(bundle, *configs, kind=kind, dataset_dir=str(scans)).check_properties() == []


def test_the_network_takes_and_gives_what_the_metadata_says(bundle):
    for config in ("train", "inference"):
        (file,) = files_of(bundle, config)
        root = {"bundle_root": str(bundle)}
        verify_net_in_out("network_def", meta_file=metadata(bundle), config_file=file, device="cpu", **root)


def test_load_returns_the_network_with_its_weights(bundle, name):
    loaded = load(name, bundle_dir=str(bundle.parent), source="monaihosting")
    assert isinstance(loaded, ScoreUNet)
    expected = network_of(DIMS[name]).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


def test_torchscript_of_ckpt_export_takes_other_shapes(bundle, name, tmp_path):
    file = tmp_path / "model.ts"
    ckpt_export(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=metadata(bundle),
        config_file=files_of(bundle, "inference"),
        use_trace=True,
        bundle_root=str(bundle),
    )
    inside = {"metadata.json": "", "inference.json": ""}  # where MONAI Deploy looks for them
    scripted, network = torch.jit.load(file, _extra_files=inside), network_of(DIMS[name]).eval()
    for config, content in inside.items():
        assert json.loads(content) == json.loads((bundle / "configs" / config).read_text(encoding="utf-8"))
    for shape in SHAPES[DIMS[name]]:
        v = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(scripted(v), network(v))


@pytest.mark.parametrize("name", ["ct_gaussian", "us_gamma"])
def test_onnx_of_onnx_export_takes_other_shapes(name, tmp_path):
    bundle, file = small_bundle(name, tmp_path / name), tmp_path / "model.onnx"
    shapes = SHAPES[DIMS[name]]
    axes = {0: "n", **{axis: f"size{axis}" for axis in range(2, 2 + DIMS[name])}}
    onnx_export(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=metadata(bundle),
        config_file=files_of(bundle, "inference"),
        input_shape=shapes[0],
        converter_kwargs={"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}},
        bundle_root=str(bundle),
    )
    session, network = onnxruntime.InferenceSession(file), network_of(DIMS[name]).eval()
    for shape in shapes:
        v = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (scores,) = session.run(None, {"image": v.numpy()})
        with torch.no_grad():
            assert np.allclose(scores, network(v).numpy(), atol=1e-5)


def test_a_federated_round(bundle, name, scans):
    keys = {key: value for key, value in TINY.items() if key != "epochs"}  # the client sets how many
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        train_kwargs={"dataset_dir": str(scans), **keys},
        eval_kwargs={"dataset_dir": str(scans), "orientations": 1, "precision": "fp32"},
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site-1"})
    everyones = ExchangeObject(weights=score_network(DIMS[name], SMALL).state_dict())
    figures = algo.evaluate(everyones).metrics
    assert math.isfinite(figures["risk"])
    for _ in range(2):
        algo.train(everyones)
        difference = algo.get_weights().weights
        assert any(float(torch.as_tensor(value).abs().max()) > 0 for value in difference.values())
    algo.finalize()


@pytest.mark.parametrize("place", ["from its folder", "from elsewhere"])
def test_commands_in_processes_of_their_own(place, tmp_path):
    name = "ct_gaussian"
    bundle = small_bundle(name, tmp_path / name)
    scan = write_scan(name, tmp_path / "scan.nii.gz")
    here = place == "from its folder"
    folder, prefix = (bundle, "configs") if here else (tmp_path, f"{name}/configs")
    root = [] if here else ["--bundle_root", bundle]
    words = ["run", "--config_file", f"{prefix}/inference.json", "--dataset_dir", scan, "--orientations", "1", *root]
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (bundle / "eval" / "scan.nii.gz").exists()
    refused = command(folder, *words, "--overwritten", True)
    assert refused.returncode != 0
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: the key 'overwritten' does not exist")
    assert last.endswith("Did you mean 'overwrite'?")
