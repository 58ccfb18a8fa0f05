"""A federation over an n2s-med bundle: FedAvg in NVFlare, here simulated on one machine.

    python job.py --bundle bundles/ct_gaussian --data 'scans/%site%' --work WORK --clients 2 --rounds 3

``%site%`` in ``--data`` becomes the name of each site: site-1, site-2, …  The weights of the best and of the last
round are put beside one another into ``WORK``, as ``best.pt`` and ``last.pt``, for ``--ckpt_path`` of the bundle.
For sites of their own, ``--job DIR`` writes the job that ``nvflare job submit`` takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from client import KEY_METRIC
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from n2s_med.bundle import bundle_network
from n2s_med.errors import ConfigurationError

SERVER_FILES = {"best.pt": "best_FL_global_model.pt", "last.pt": "FL_global_model.pt"}
"""What NVFlare calls the weights that it keeps."""


def main() -> None:
    """Make the job, and run or export it."""
    options = _options()
    recipe = FedAvgRecipe(
        name=f"n2s-med-{options.bundle.name}",
        model=bundle_network(options.bundle),
        min_clients=options.clients,
        num_rounds=options.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=_words(options),
        key_metric=KEY_METRIC,
    )
    if options.job:
        recipe.export(str(options.job))
        print(options.job)
        return
    everyone = options.clients
    environment = SimEnv(num_clients=everyone, num_threads=everyone, workspace_root=str(options.work / "simulation"))
    run = recipe.execute(environment)
    result = Path(str(run.get_result()))
    for name, kept in SERVER_FILES.items():
        (found,) = result.rglob(kept)
        state = torch.load(found, map_location="cpu", weights_only=True)["model"]
        torch.save(state, options.work / name)
        print(options.work / name)


def _words(options: argparse.Namespace) -> str:
    """Arguments of ``client.py``, in one line that NVFlare splits at every blank."""
    words = [
        *("--bundle", str(options.bundle), "--data", options.data, "--work", str(options.work)),
        *("--local_epochs", str(options.local_epochs), "--steps_per_epoch", str(options.steps_per_epoch)),
        *("--patch", str(options.patch)),
    ]
    for word in words:
        if set(word) & set(" \t\n'\""):
            raise ConfigurationError(f"NVFlare takes no blanks and quotes in {word!r}", remedy="give another path")
    return " ".join(words)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=lambda name: Path(name).resolve(), required=True)
    parser.add_argument("--data", required=True, help="scans of each site, as --dataset_dir of the bundle; %%site%%")
    parser.add_argument("--work", type=lambda name: Path(name).resolve(), required=True, help="folder for all results")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local_epochs", type=int, default=1)
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--job", type=Path, help="write the job here, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
