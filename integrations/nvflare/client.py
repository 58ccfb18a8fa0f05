"""What a site does in each round: judge the weights it is sent, train them on its own noisy scans, send them back.

NVFlare runs this script at every site; ``job.py`` beside it makes the job.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nvflare.client as flare
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

KEY_METRIC = "negative_risk"
"""NVFlare keeps the weights with the highest figure; of the remaining error less is better."""


def main() -> None:
    """Take part in the federation until it ends."""
    options = _options()
    flare.init()
    site = flare.get_site_name()
    algo = _algo(options, site)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: site})
    while flare.is_running():
        received = flare.receive()
        weights = ExchangeObject(weights=received.params)
        figures = {name: float(value) for name, value in algo.evaluate(weights).metrics.items()}
        print(f"{site}, round {received.current_round}: {figures['risk']:.4f} of the noise variance left", flush=True)
        algo.train(weights)
        trained = algo.get_weights()
        flare.send(
            flare.FLModel(
                params=dict(trained.weights),  # tensors: NVFlare leaves out all else, with no more than a warning
                metrics=figures | {KEY_METRIC: -figures["risk"]},
                meta={"NUM_STEPS_CURRENT_ROUND": trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]},
            )
        )
    algo.finalize()


def _algo(options: argparse.Namespace, site: str) -> MonaiAlgo:
    """MONAI's client over the bundle, its files kept apart from those of other sites on this machine."""
    own = Path(options.work) / site
    data = options.data.replace("%site%", site)
    return MonaiAlgo(
        bundle_root=options.bundle,
        local_epochs=options.local_epochs,
        send_weight_diff=False,
        train_kwargs={
            "dataset_dir": data,
            "ckpt_dir": str(own / "models"),
            "cache_dir": str(own / "cache"),
            "output_dir": str(own / "train"),
            "steps_per_epoch": options.steps_per_epoch,
            "patch": options.patch,
            "patience": sys.maxsize,  # the server decides when to stop
        },
        eval_kwargs={"dataset_dir": data, "output_dir": str(own / "eval"), "orientations": 1},
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True, help="folder of the bundle at this site")
    parser.add_argument("--data", required=True, help="this site's scans, as --dataset_dir of the bundle")
    parser.add_argument("--work", required=True, help="folder for this site's checkpoints and figures")
    parser.add_argument("--local_epochs", type=int, default=1)
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--patch", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
