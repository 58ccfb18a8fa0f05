"""``python -m n2s_med.bundle``: put weights into bundles, adapt them to a modality, and export networks."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from n2s_med.bundle.adapt import Recipe, adapt
from n2s_med.bundle.export import FORMATS, export
from n2s_med.bundle.network import place_base_weights
from n2s_med.errors import ConfigurationError, N2SError
from n2s_med.noise import law_named


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        for bundle in arguments.bundles:
            for file in arguments.run(bundle, arguments):
                print(file)
    except N2SError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _weights(bundle: Path, _: argparse.Namespace) -> list[Path]:
    return place_base_weights(bundle)


def _adapt(bundle: Path, arguments: argparse.Namespace) -> list[Path]:
    recipe = Recipe.read(arguments.recipe, bundle.resolve().name)
    with contextlib.redirect_stdout(sys.stderr):  # MONAI's handlers log to stdout, where the results go
        return adapt(bundle, recipe, arguments.data)


def _export(bundle: Path, arguments: argparse.Namespace) -> list[Path]:
    parameters = dict(_parameter(pair) for pair in arguments.set)
    law = law_named(arguments.law, **parameters) if arguments.law else None
    return export(bundle, arguments.formats or list(FORMATS), law)


def _parameter(pair: str) -> tuple[str, float]:
    name, _, value = pair.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise ConfigurationError(f"--set {pair!r} is not NAME=NUMBER", remedy="e.g. --set sigma=20") from error


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m n2s_med.bundle", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    weights = commands.add_parser("weights", help="put the package's base weights into models/ of bundles")
    weights.set_defaults(run=_weights)

    adapted = commands.add_parser("adapt", help="adapt the base weights to noisy scans, and tell of it on the card")
    adapted.set_defaults(run=_adapt)
    adapted.add_argument("--recipe", type=Path, required=True, help="JSON file with a recipe for each bundle")
    adapted.add_argument(
        "--data", type=Path, default=os.environ.get("N2S_DATA", "."), help="folder of the scans; default: $N2S_DATA"
    )

    exported = commands.add_parser("export", help="export a bundle's network, alone or with the Tweedie step")
    exported.set_defaults(run=_export)
    exported.add_argument("--format", dest="formats", action="append", choices=sorted(FORMATS), help="default: all")
    exported.add_argument("--law", help="export the network with the Tweedie step of this noise law")
    exported.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="a parameter of the law")
    for command in (weights, adapted, exported):
        command.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folder of a bundle")
    return top


if __name__ == "__main__":
    sys.exit(main())
