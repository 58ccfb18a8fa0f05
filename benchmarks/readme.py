"""Run ``make demo``'s job and put its table and picture into the README.

python benchmarks/readme.py [--seconds 90]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

from n2s_med import demo, pictures
from n2s_med.compute import set_threads
from n2s_med.phantoms import pet_phantom
from n2s_med.volumes import read

README, FIGURE = Path("README.md"), Path("docs/figures/demo.png")
BEGIN, END = "<!-- demo -->", "<!-- /demo -->"


def main() -> None:
    """Run the demonstration and rewrite the part of the README between its markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=demo.SECONDS)
    arguments = parser.parse_args()
    set_threads()
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()) as told:
        demo._phantom(Path(work), arguments.seconds)
        noisy, denoised = (read(Path(work) / name).volumes[0] for name in ("noisy", "adapted"))
    lines = told.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.split() == ["truth", "noisy", "alone", "adapted"])
    last = next(i for i, line in enumerate(lines) if line.startswith("background bias"))
    figure, _ = pictures.planes(
        noisy.as_tensor()[0],
        denoised.as_tensor()[0],
        spacing_mm=pet_phantom().spacing_mm,
        units="Bq/mL",
        window=(0.0, float(pet_phantom().activity.max())),
        affine=noisy.affine,
    )
    FIGURE.write_bytes(pictures.png(figure))
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    table = "\n".join(["", "```text", *lines[first : last + 1], "```", ""])
    README.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")
    print("\n".join(lines[first : last + 1]))


if __name__ == "__main__":
    main()
