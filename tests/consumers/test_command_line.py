"""Every command of MONAI's bundles over every bundle, each in a process of its own, from two places.

The processes are forked, and so share what is imported already: in most of a hundred commands that is what takes long.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import onnxscript  # noqa: F401  # here, not in each process
import pytest
import torch
import torch._dynamo  # by the optimizers
from bundle_runs import (
    BUNDLES,
    DIMS,
    NAMES,
    TINY,
    check_exports,
    network_of,
    small_bundle,
    values_of,
    write_scan,
)
from monai.bundle import ConfigWorkflow, load
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from n2s_med.noise import Gaussian

SHAPES = {3: (1, 1, 9, 17, 12), 2: (1, 1, 9, 17)}
FAST = {"orientations": 1, "precision": "fp32"}


@dataclass
class Place:
    """A bundle with a scan of its modality, and where commands are run from."""

    bundle: Path
    scan: Path
    folder: Path
    prefix: str
    root: tuple[object, ...]

    def run(self, *words: object, module: str = "monai.bundle", rooted: bool = True) -> str:
        """Run a command that must succeed; what it says."""
        code, told = self.ended(*words, module=module, rooted=rooted)
        assert code == 0, told[-4000:]
        return told

    def ended(self, *words: object, module: str = "monai.bundle", rooted: bool = True) -> tuple[int, str]:
        """Exit status of ``python -m MODULE WORDS``, and what it says."""

        def main() -> None:
            sys.argv = [module, *map(str, words), *(map(str, self.root) if rooted else ())]
            runpy.run_module(module, run_name="__main__", alter_sys=True)

        return self.apart(main)

    def apart(self, work: Callable[[], None]) -> tuple[int, str]:
        """Exit status of a process that does some work here, and what it says."""
        log = self.scan.with_name("log.txt")
        if process := os.fork():
            _, status = os.waitpid(process, 0)
            return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8")
        code = 1
        try:
            os.chdir(self.folder)
            os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLES.parent)}
            stream = log.open("w", encoding="utf-8", buffering=1)
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
            sys.stdout = sys.stderr = stream
            code = _status(work)
        finally:
            os._exit(code)

    def config(self, *names: str) -> str:
        """Configuration files as the command line takes them."""
        files = [f"{self.prefix}/{name}.json" for name in names]
        return files[0] if len(files) == 1 else str(files)

    def at_work(self, *configs: str, **keys: Any) -> list[object]:
        """Words of ``run`` over the scan."""
        told = [word for key, value in keys.items() for word in (f"--{key}", value)]
        return ["run", "--config_file", self.config(*configs), "--dataset_dir", self.scan, *told]


def _status(work: Callable[[], None]) -> int:
    """Exit status of a program: what it leaves uncaught is told as the interpreter tells it."""
    try:
        work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """Every bundle."""
    return str(request.param)


@pytest.fixture(params=["from its folder", "from elsewhere"])
def place(request, name, tmp_path) -> Place:
    """Where commands are run from."""
    bundle = small_bundle(name, tmp_path / name)
    scan = write_scan(name, tmp_path / "scan.nii.gz")
    if request.param == "from its folder":
        return Place(bundle, scan, bundle, "configs", ())
    return Place(bundle, scan, tmp_path, f"{name}/configs", ("--bundle_root", bundle))


def test_train(place):
    place.run(*place.at_work("train", **TINY))
    assert (place.bundle / "models" / "checkpoint_epoch=1.pt").exists()
    place.run(*place.at_work("train", **(TINY | {"epochs": 2}), resume=True))
    assert (place.bundle / "models" / "checkpoint_epoch=2.pt").exists()


def test_evaluate(place):
    place.run(*place.at_work("train", "evaluate", **FAST))
    (row,) = json.loads((place.bundle / "eval" / "figures.json").read_text(encoding="utf-8"))
    assert {"risk", "checks_passed"} <= row.keys()


def test_inference(place):
    place.run(*place.at_work("inference", **FAST))
    denoised = values_of(place.bundle / "eval" / "scan.nii.gz")
    assert denoised.shape == values_of(place.scan).shape
    assert not np.array_equal(denoised, values_of(place.scan))


def test_two_processes(place):
    words = ["--standalone", "--nproc_per_node", 2, "-m", "monai.bundle"]
    told = place.run(*words, *place.at_work("train", "multi_gpu_train", **TINY), module="torch.distributed.run")
    assert told.count("Saved checkpoint at epoch: 1") == 1


def test_verify(place):
    schema = ("--filepath", BUNDLES / "metadata_schema.json")
    place.run("verify_metadata", "--meta_file", place.config("metadata"), *schema, rooted=False)
    files = ("--meta_file", place.config("metadata"), "--config_file", place.config("inference"))
    place.run("verify_net_in_out", "network_def", *files, "--device", "cpu")


def test_exports_of_monai(place, name, tmp_path):
    dims = DIMS[name]
    v = torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network_of(dims).eval()(v)
    files = ["--ckpt_file", place.bundle / "models" / "model.pt", "--meta_file", place.config("metadata")]
    files += ["--config_file", place.config("inference")]
    traced, onnx = tmp_path / "model.ts", tmp_path / "model.onnx"
    place.run("ckpt_export", "network_def", "--filepath", traced, *files, "--use_trace", True)
    torch.testing.assert_close(torch.jit.load(traced)(v), expected)
    axes = {0: "n", **{axis: f"size{axis}" for axis in range(2, 2 + dims)}}
    keys = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}}
    shape = ("--input_shape", [2, 1, 16, 20, 24][: 2 + dims], "--converter_kwargs", keys)
    place.run("onnx_export", "network_def", "--filepath", onnx, *files, *shape)
    (scores,) = onnxruntime.InferenceSession(onnx).run(None, {"image": v.numpy()})
    assert np.allclose(scores, expected.numpy(), atol=1e-5)


def test_exports_of_ours(place, name):
    words = ["export", place.bundle, "--law", "gaussian", "--set", "sigma=20"]
    place.run(*words, module="n2s_med.bundle", rooted=False)
    files = [place.bundle / "models" / f"denoiser.{suffix}" for suffix in ("onnx", "pt2", "ts")]
    check_exports(files, DIMS[name], Gaussian(20.0))


def test_what_monai_calls_without_a_command(place, name):
    code, told = place.apart(lambda: called(place, name))
    assert code == 0, told[-4000:]


def called(place: Place, name: str) -> None:
    """The properties, the network and a round of a federated client, by paths from where this is called."""
    data = {"dataset_dir": str(place.scan), **({"bundle_root": str(place.bundle)} if place.root else {})}
    for config, kind in (("train", "train"), ("inference", "infer")):
        made = ConfigWorkflow([place.config(config)], workflow_type=kind, logging_file=False, **data)
        made.initialize()
        assert made.check_properties() == []
    here = os.path.relpath(place.bundle)
    loaded = load(name, bundle_dir=os.path.relpath(place.bundle.parent), source="monaihosting")
    expected = network_of(DIMS[name]).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    keys = {key: value for key, value in TINY.items() if key != "epochs"}  # the client sets how many
    scan = {"dataset_dir": str(place.scan)}
    algo = MonaiAlgo(bundle_root=here, train_kwargs=scan | keys, eval_kwargs=scan | FAST)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site-1"})
    everyones = ExchangeObject(weights=expected)
    assert math.isfinite(algo.evaluate(everyones).metrics["risk"])
    algo.train(everyones)
    difference = algo.get_weights().weights
    assert any(float(torch.as_tensor(value).abs().max()) > 0 for value in difference.values())
    algo.finalize()


@pytest.mark.parametrize("own", [True, False], ids=["ours", "MONAI's"])
def test_tracked_runs_end(place, own):
    keys = {"track": True} if own else {"tracking": "mlflow"}
    place.run(*place.at_work("train", **TINY, **keys, run_name="x"))
    store = place.bundle / "eval" / ("mlflow.db" if own else "mlruns.db")
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert [(found.info.run_name, found.info.status) for found in runs] == [("x", "FINISHED")]
    assert {"loss", "train_loss"} & runs[0].data.metrics.keys()


def test_a_misspelt_override_is_told(place):
    code, told = place.ended(*place.at_work("train", **TINY), "--epochz", 1)
    assert code != 0
    assert told.splitlines()[-1].endswith("Did you mean 'epochs'?")
    assert not list((place.bundle / "models").glob("checkpoint*"))


def test_scans_that_are_not_there_are_told(place):
    missing = place.scan.with_name("missing")
    code, told = place.ended(*replace(place, scan=missing).at_work("inference"))
    assert code != 0
    assert told.splitlines()[-1] == f"error: {missing}: no such file or folder. Check the path."
