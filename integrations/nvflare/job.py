"""A federation over an n2s-med bundle: FedAvg in NVFlare, here simulated on one machine.

    python job.py --bundle bundles/ct_gaussian --data 'scans/%site%' --work WORK --clients 2 --rounds 3

``%site%`` in ``--data`` becomes the name of each site: site-1, site-2, …  The weights of the best and of the last
round are put beside one another into ``WORK``, as ``best.pt`` and ``last.pt``, for ``--ckpt_path`` of the bundle.
For sites of their own, ``--job DIR`` writes the job that ``nvflare job submit`` takes.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from client import KEY_METRIC
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from n2s_med.bundle import bundle_network
from n2s_med.errors import ConfigurationError, ModelError

SERVER_FILES = {"last.pt": "FL_global_model.pt", "best.pt": "best_FL_global_model.pt"}
"""What NVFlare calls the weights that it keeps."""

START = "initial.pt"
"""The bundle's weights, with which the federation starts, as they are called in the job."""


def main() -> None:
    """Make the job, and run or export it."""
    options = _options()
    # What NVFlare is given by a relative path it puts into the job; an absolute path would have to hold at every site.
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        _make(options)


def _make(options: argparse.Namespace) -> None:
    """Make the job from files in the working directory, and run or export it."""
    torch.save(bundle_network(options.bundle).state_dict(), START)
    shutil.copy(Path(__file__).with_name("client.py"), "client.py")
    recipe = FedAvgRecipe(
        name=f"n2s-med-{options.bundle.name}",
        model_persistor=PTFileModelPersistor(source_ckpt_file_full_name=START, load_device="cpu"),
        min_clients=options.clients,
        num_rounds=options.rounds,
        train_script="client.py",
        train_args=_words(options),
        key_metric=KEY_METRIC,
    )
    recipe.add_server_file(START)
    if options.job:
        recipe.export(str(options.job))
        print(options.job)
        return
    everyone = options.clients
    environment = SimEnv(num_clients=everyone, num_threads=everyone, workspace_root=str(options.work / "simulation"))
    run = recipe.execute(environment)
    result = Path(str(run.get_result()))
    for name, kept in SERVER_FILES.items():
        found = next(result.rglob(kept), None)
        if found is None:
            raise ModelError(f"the federation kept no {name}", remedy="see the logs of the sites there", path=result)
        state = torch.load(found, map_location="cpu", weights_only=True)["model"]
        torch.save(state, options.work / name)
        print(options.work / name)


def _words(options: argparse.Namespace) -> str:
    """Arguments of ``client.py``, in one line that NVFlare splits at every blank."""
    words = [
        *("--bundle", str(options.bundle), "--data", str(options.data), "--work", str(options.work)),
        *("--local_epochs", str(options.local_epochs), "--steps_per_epoch", str(options.steps_per_epoch)),
        *("--patch", str(options.patch)),
    ]
    for word in words:
        if set(word) & set(" \t\n'\""):
            raise ConfigurationError(f"NVFlare takes no blanks and quotes in {word!r}", remedy="give another path")
    return " ".join(words)


def _path(name: str) -> Path:
    """A path that holds in any working directory."""
    return Path(name).resolve()


def _rounds(word: str) -> int:
    """Number of rounds; what the last one gives is judged by no site, so of one alone there is no best."""
    if (rounds := int(word)) < 2:
        raise argparse.ArgumentTypeError("two at least: what a round gives is judged in the next")
    return rounds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=_path, required=True)
    parser.add_argument(
        "--data", type=_path, required=True, help="scans of each site, as --dataset_dir of the bundle; %%site%%"
    )
    parser.add_argument("--work", type=_path, required=True, help="folder for all results")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=_rounds, default=3, help="two at least: a round is judged in the next")
    parser.add_argument("--local_epochs", type=int, default=1)
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--job", type=_path, help="write the job here, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
