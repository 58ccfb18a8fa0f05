"""The report beside each result: one HTML page with its pictures inside, and the same figures as JSON.

Nothing is looked up: a report holds what it is given and no more, so it holds no patient data unless the
caller passes some. The pictures show the scan itself.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from n2s_med.atomic import whole

if TYPE_CHECKING:
    from torch import Tensor

JSONValue: TypeAlias = "bool | int | float | str | Sequence[JSONValue] | Mapping[str, JSONValue] | None"

SCHEMA_VERSION = 1
"""Raised whenever a key of the JSON report changes its name or meaning."""


@dataclass(frozen=True)
class Verdict:
    """One trust check: a figure, the range expected of it, and what it means in a sentence.

    ``low`` and ``high`` may be infinite where the range is open on that side.
    """

    name: str
    value: float
    low: float
    high: float
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Report:
    """What is told about one result.

    Attributes
    ----------
    title
        Heading of the page, free of patient data.
    figures
        Section → name → value. A name ends in its unit (``peak_memory_mib``, ``wall_time_s``); the ending
        ``_units`` stands for the scan's own unit.
    verdicts
        The trust checks.
    warnings
        Sentences that must be read first.
    """

    title: str
    figures: Mapping[str, Mapping[str, JSONValue]]
    verdicts: Sequence[Verdict] = field(default=())
    warnings: Sequence[str] = field(default=())


def report_paths(stem: Path) -> tuple[Path, Path]:
    """Where the report of a result lies, given its path without extension: the page and the figures."""
    return Path(f"{stem}.report.html"), Path(f"{stem}.report.json")


@dataclass(frozen=True)
class Shown:
    """What a report shows of a volume.

    Attributes
    ----------
    picture
        PNG of its planes.
    voxel
        Where they cross.
    shape, spacing_mm, units
        Of the volume (X, Y, Z); ``units`` is also printed beside the figures.
    """

    picture: bytes
    voxel: tuple[int, int, int]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    units: str


def shown(
    before: Tensor,
    after: Tensor,
    *,
    spacing_mm: tuple[float, float, float],
    units: str,
    window: tuple[float, float] | None,
    sd: Tensor | None = None,
    affine: Tensor | NDArray[np.floating[Any]] | None = None,
) -> Shown:
    """Draw what a report shows; for the parameters see :func:`n2s_med.pictures.planes`."""
    from n2s_med import pictures  # Matplotlib takes a third of a second to import

    figure, voxel = pictures.planes(
        before, after, spacing_mm=spacing_mm, units=units, window=window, sd=sd, affine=affine
    )
    return Shown(pictures.png(figure), voxel, tuple(before.shape), spacing_mm, units)


def write_report(stem: Path, report: Report, seen: Shown) -> tuple[Path, Path]:
    """Write :func:`report_paths`, each whole or not at all; return both.

    A report that is there already is replaced.

    Parameters
    ----------
    stem
        Path of the result without its extension; the endings are appended, so dots in it stay.
    report, seen
        What is told and shown.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    html, data = report_paths(stem)
    with whole(html, overwrite=True) as page, whole(data, overwrite=True) as figures:
        page.write_text(_page(report, seen.picture, seen.units), encoding="utf-8")
        figures.write_text(_json(report, seen), encoding="utf-8")
    return html, data


def _software() -> str:
    return f"n2s-med {metadata.version('n2s-med')}"


# --- JSON --------------------------------------------------------------------------------------------------


def _json(report: Report, seen: Shown) -> str:
    content: dict[str, JSONValue] = {
        "schema_version": SCHEMA_VERSION,
        "software": _software(),
        "title": report.title,
        "units": seen.units,
        "volume": {"shape": seen.shape, "spacing_mm": seen.spacing_mm, "voxel_shown": seen.voxel},
        "figures": report.figures,
        "verdicts": [asdict(verdict) for verdict in report.verdicts],
        "warnings": list(report.warnings),
    }
    not_finite = list(_not_finite(content))
    content["written_as_null"] = {path: str(value) for path, value in not_finite}
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: JSONValue) -> JSONValue:
    """Return the value with ``null`` for each number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_finite(value: JSONValue, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield path and value of each number that is not finite, such as ``figures/noise/sigma``."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _not_finite(item, f"{path}/{name}".lstrip("/"))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{path}/{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


# --- HTML --------------------------------------------------------------------------------------------------

_UNITS = {
    "bqml": "Bq/mL",
    "bytes": "B",
    "db": "dB",
    "gib": "GiB",
    "h": "h",
    "hu": "HU",
    "mib": "MiB",
    "min": "min",
    "ml": "mL",
    "mm": "mm",
    "ms": "ms",
    "percent": "%",
    "s": "s",
    "sd": "SD",
    "voxels": "voxels",
}

_ACRONYMS = frozenset(
    ("cpu", "ct", "ema", "gpu", "mr", "nm", "nps", "pet", "psnr", "pure", "sd", "snr", "ssim", "sure", "suv")
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6676; --line: #dfe3ea; --paper: #f6f7f9;
  --card: #fff; --good: #13753f; --good-bg: #e9f6ee; --bad: #b3201f; --bad-bg: #fdeceb; --band: #b9e2c8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b3; --line: #2b333f;
  --paper: #12161c; --card: #1a2029; --good: #6fd39a; --good-bg: #14281d; --bad: #ff8f88; --bad-bg: #351a1b;
  --band: #2b5a3f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.4rem 3rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .7rem; font-size: 1rem; }
p { margin: .3rem 0; }
.soft, figcaption { color: var(--soft); font-size: .87rem; }
.warnings { margin-top: 1.3rem; padding: .8rem 1.1rem; border: 1px solid var(--bad);
  border-left-width: 5px; border-radius: 6px; background: var(--bad-bg); color: var(--bad); }
.warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .85rem 1.05rem;
  break-inside: avoid; }
.card h2, .card h3 { margin: 0 0 .35rem; font-size: .95rem; }
.verdict { border-left: 5px solid var(--good); }
.verdict.failed { border-left-color: var(--bad); background: var(--bad-bg); }
.verdict h3 { display: flex; justify-content: space-between; gap: 1rem; }
.state { color: var(--good); font-weight: 600; white-space: nowrap; }
.failed .state { color: var(--bad); }
.gauge { display: block; width: 100%; height: 14px; margin: .45rem 0 .25rem; }
.gauge .axis { fill: var(--line); } .gauge .band { fill: var(--band); } .gauge .mark { fill: var(--good); }
.failed .gauge .mark { fill: var(--bad); }
figure { margin: 1.6rem 0 0; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { margin-top: .5rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
td, th { padding: .3rem 0; border-top: 1px solid var(--line); vertical-align: baseline; }
tr:first-child > * { border-top: 0; }
th { text-align: left; font-weight: 400; color: var(--soft); padding-right: 1rem; }
td { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
footer { margin-top: 2.2rem; padding-top: .8rem; border-top: 1px solid var(--line); }
@media print { body { background: none; font-size: 12px; } main { max-width: none; padding: 0; }
  .card, .warnings { break-inside: avoid; } img { max-height: 24cm; object-fit: contain; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_CAPTION = (
    "The planes cross in one voxel of the largest bright region. Before and after share one window; the "
    "difference is symmetric around zero and should show noise without anatomy. Purple: voxels that are not "
    "finite. With letters the view is radiological (R: the patient's right, shown on the left); without them "
    "the patient's position is unknown and the planes are named by array axes."
)


def _page(report: Report, picture: bytes, units: str) -> str:
    body = "\n".join(
        (
            f"<header><h1>{escape(report.title)}</h1>",
            f'<p class="soft">Denoising report · {escape(_software())} · for research use, not for diagnosis'
            "</p></header>",
            _warnings(report.warnings),
            _verdicts(report.verdicts),
            _figure(picture),
            _tables(report.figures, units),
            '<footer class="soft">The JSON file beside this page holds the same figures, unrounded.</footer>',
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    heading = "Warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return f'<section class="warnings" role="alert"><strong>{heading}</strong><ul>{items}</ul></section>'


def _figure(picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    alt = "The scan before and after denoising and their difference"
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">'
        f"<figcaption>{escape(_CAPTION)}</figcaption></figure>"
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    failed = sum(not verdict.passed for verdict in verdicts)
    count = f"{failed} of {len(verdicts)} failed" if failed else f"all {len(verdicts)} passed"
    cards = "\n".join(_verdict(verdict) for verdict in verdicts)
    return f'<h2>Can it be trusted? Checks: {count}</h2><div class="cards">{cards}</div>'


def _verdict(verdict: Verdict) -> str:
    state = "✓ passed" if verdict.passed else "✗ failed"
    return (
        f'<section class="card verdict{"" if verdict.passed else " failed"}">'
        f'<h3>{escape(verdict.name)}<span class="state">{state}</span></h3>'
        f"{_gauge(verdict)}<p>{escape(verdict.sentence)}</p>"
        f'<p class="soft">Found {_number(verdict.value)}, expected {_range(verdict.low, verdict.high)}</p>'
        "</section>"
    )


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "any value"
    if math.isinf(low):
        return f"at most {_number(high)}"
    return f"at least {_number(low)}" if math.isinf(high) else f"{_number(low)} to {_number(high)}"


def _gauge(verdict: Verdict) -> str:
    """Draw the value on a scale with the expected range as a band; nothing where there is no scale."""
    known = [x for x in (verdict.low, verdict.high, verdict.value) if math.isfinite(x)]
    if len(known) < 2 or not math.isfinite(verdict.value) or min(known) == max(known):
        return ""
    margin = 0.25 * (max(known) - min(known))
    left, right = min(known) - margin, max(known) + margin

    def place(x: float) -> float:
        return 100 * (min(max(x, left), right) - left) / (right - left)

    low, high = place(verdict.low), place(verdict.high)
    return (
        '<svg class="gauge" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="axis" y="4" width="100" height="2"/>'
        f'<rect class="band" x="{low:.2f}" y="2" width="{high - low:.2f}" height="6"/>'
        f'<rect class="mark" x="{place(verdict.value) - 0.4:.2f}" width="0.8" height="10"/></svg>'
    )


def _tables(figures: Mapping[str, Mapping[str, JSONValue]], units: str) -> str:
    if not figures:
        return ""
    cards = "\n".join(_table(section, rows, units) for section, rows in figures.items())
    return f'<h2>Figures</h2><div class="cards">{cards}</div>'


def _table(section: str, rows: Mapping[str, JSONValue], units: str) -> str:
    lines = "".join(_row(name, value, units) for name, value in rows.items())
    return f'<section class="card"><h2>{escape(_words(section))}</h2><table>{lines}</table></section>'


def _row(name: str, value: JSONValue, units: str) -> str:
    stem, _, ending = name.rpartition("_")
    unit = {**_UNITS, "units": units}.get(ending) if stem else None
    label, shown = (_words(name), _text(value)) if unit is None else (_words(stem), _text(value))
    number = isinstance(value, int | float) and math.isfinite(value)
    suffix = f" {unit}" if unit is not None and number else ""
    return f"<tr><th>{escape(label)}</th><td>{escape(shown + suffix)}</td></tr>"


def _words(name: str) -> str:
    words = " ".join(word.upper() if word in _ACRONYMS else word for word in name.split("_"))
    return words[:1].upper() + words[1:]


def _text(value: JSONValue) -> str:
    if value is None:
        return "not available"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)}: {_text(item)}" for name, item in value.items())
    return ", ".join(_text(item) for item in value)


def _number(value: float) -> str:
    """Return four significant digits, a real minus sign, and narrow spaces between thousands."""
    if not math.isfinite(value):
        return {"nan": "not a number", "inf": "infinite", "-inf": "minus infinite"}[str(float(value))]
    whole = abs(value) >= 1000 and abs(value) < 1e9
    text = f"{value:,.0f}" if whole or isinstance(value, int) else f"{value:.4g}"
    return text.replace("-", "−").replace(",", "\u202f")
