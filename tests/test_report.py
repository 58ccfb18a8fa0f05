"""The report: what the page and the JSON hold, that they are written whole, and how planes are turned."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from n2s_med import pictures
from n2s_med.errors import OutputError
from n2s_med.report import Report, Verdict, shown, write_report

SPACING = (1.0, 2.0, 4.0)


def volume(shape: tuple[int, int, int] = (20, 16, 12)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 5


def report(**changes) -> Report:
    parts = {
        "title": "PET <script>alert(1)</script> & more",
        "figures": {
            "noise_law": {"law": "poisson", "gain_units": 12.345678, "fitted": True, "level": None},
            "run": {"wall_time_s": 83.21, "peak_memory_mib": 123456, "tiles": [3, 2], "by": {"seed": 1}},
        },
        "verdicts": [
            Verdict("Residual mean", 0.01, -0.1, 0.1, True, "Nothing but noise went."),
            Verdict("Variance", 1.5, 0.9, 1.1, False, "Too much <b>went</b>."),
        ],
        "warnings": ["Trained on <this> scan alone."],
    }
    return Report(**(parts | changes))


def written(tmp_path: Path, told: Report, **changes) -> tuple[str, dict]:
    parts = {
        "before": volume(),
        "after": volume() * 0.9,
        "spacing_mm": SPACING,
        "units": "BQML",
        "window": None,
    }
    html, data = write_report(tmp_path / "scan.v1", told, shown(**(parts | changes)))
    assert html == tmp_path / "scan.v1.report.html"
    assert data == tmp_path / "scan.v1.report.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == [html.name, data.name]
    return html.read_text(encoding="utf-8"), json.loads(data.read_text(encoding="utf-8"), parse_constant=pytest.fail)


class Page(HTMLParser):
    """Collects text, tags and addresses, and checks that every element is closed in its order."""

    VOID = frozenset(("meta", "img", "br", "rect"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.addresses = "", [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture_of(html: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html).group(1))))


def test_page_is_self_contained_escaped_and_complete(tmp_path):
    html, _ = written(tmp_path, report())
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert all(address.startswith("data:image/png") for address in page.addresses)
    assert "http" not in html.replace("http-equiv", "")
    for told in (
        "PET <script>alert(1)</script> & more",
        "Trained on <this> scan alone.",
        "Too much <b>went</b>.",
        "Gain12.35 BQML",
        "Peak memory123\u202f456 MiB",
        "Wall time83.21 s",
        "Fittedyes",
        "Levelnot available",
        "Tiles3, 2",
        "BySeed: 1",
        "1 of 2 failed",
        "✗ failed",
        "✓ passed",
        "expected −0.1 to 0.1",
    ):
        assert told in page.text, told
    assert page.text.index("Trained on") < page.text.index("Residual mean") < page.text.index("Noise law")


def test_page_without_warnings_verdicts_or_figures_has_no_empty_boxes(tmp_path):
    html, data = written(tmp_path, Report("Plain", {}))
    page = Page(html)
    assert 'class="warnings"' not in html
    assert "Checks" not in page.text
    assert "Figures" not in page.text
    assert data["warnings"] == data["verdicts"] == []


def test_json_holds_the_same_figures_unrounded(tmp_path):
    told = report()
    _, data = written(tmp_path, told)
    assert data["schema_version"] == 1
    assert data["figures"]["noise_law"]["gain_units"] == 12.345678
    assert data["verdicts"][1] == {
        "name": "Variance",
        "value": 1.5,
        "low": 0.9,
        "high": 1.1,
        "passed": False,
        "sentence": "Too much <b>went</b>.",
    }
    assert data["units"] == "BQML"
    assert data["volume"]["shape"] == [20, 16, 12]
    assert data["volume"]["spacing_mm"] == list(SPACING)
    assert data["written_as_null"] == {}


def test_numbers_without_json_words_become_null_and_are_named(tmp_path):
    told = report(
        figures={"fit": {"psnr_db": math.inf, "levels": [1.0, math.nan]}},
        verdicts=[Verdict("Open", math.nan, -math.inf, 1.0, False, "Unknown.")],
    )
    html, data = written(tmp_path, told)
    assert data["figures"]["fit"] == {"psnr_db": None, "levels": [1.0, None]}
    assert data["written_as_null"] == {
        "figures/fit/psnr_db": "inf",
        "figures/fit/levels/1": "nan",
        "verdicts/0/value": "nan",
        "verdicts/0/low": "-inf",
    }
    assert "PSNRinfinite" in Page(html).text
    assert "Found not a number, expected at most 1" in Page(html).text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.5, math.inf, "at least 0.5"), (-math.inf, math.inf, "any value"), (-math.inf, 2.0, "at most 2")],
)
def test_open_ranges_are_told_in_words(tmp_path, low, high, words):
    html, _ = written(tmp_path, report(verdicts=[Verdict("Open", 1.0, low, high, True, "Fine.")]))
    assert f"expected {words}" in Page(html).text
    assert "all 1 passed" in Page(html).text


def test_same_input_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    assert written(first, report()) == written(second, report())


def test_a_place_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"scan\.v1\.report\.(html|json): .*Choose another place\."):
        written(tmp_path / "file", report())


def test_no_space_leaves_the_earlier_report_and_no_scrap(tmp_path, monkeypatch):
    before = written(tmp_path, report())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="no space is left"):
        written(tmp_path, report(title="Another"))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json"]
    assert (tmp_path / "scan.v1.report.html").read_text(encoding="utf-8") == before[0]


@pytest.mark.parametrize("shape", [(20, 16, 1), (1, 1, 1), (2, 200, 3), (1, 20, 16), (3, 1, 1)])
@pytest.mark.parametrize("with_sd", [False, True])
def test_any_shape_has_a_picture(tmp_path, shape, with_sd):
    sd = torch.ones(shape) if with_sd else None
    html, _ = written(tmp_path, report(), before=volume(shape), after=volume(shape), sd=sd)
    width, height = picture_of(html).size
    assert width == pytest.approx(150 * (13 if with_sd else 9.6), rel=0.05)
    assert height > 100


def test_a_single_slice_has_one_plane_and_a_volume_three():
    def axes(shape):
        figure, _ = pictures.planes(volume(shape), volume(shape), spacing_mm=SPACING, units="HU")
        return len(figure.axes)

    assert axes((20, 16, 1)) == 3 + 3  # before, after, difference, and a colour bar each
    assert axes((20, 16, 12)) == 9 + 3


def test_unusable_arguments_are_named():
    with pytest.raises(ValueError, match="after must be"):
        pictures.planes(volume(), volume()[1:], spacing_mm=SPACING, units="HU")
    with pytest.raises(ValueError, match="sd must be"):
        pictures.planes(volume(), volume(), spacing_mm=SPACING, units="HU", sd=torch.ones(3))
    with pytest.raises(ValueError, match="spacing_mm"):
        pictures.planes(volume(), volume(), spacing_mm=(1.0, 0.0, 1.0), units="HU")


@pytest.mark.parametrize("fill", [math.nan, math.inf, 0.0])
def test_volumes_without_any_contrast_still_give_a_picture(tmp_path, fill):
    same = torch.full((8, 8, 8), fill)
    _, data = written(tmp_path, report(), before=same, after=same)
    assert data["volume"]["voxel_shown"] == [4, 4, 4]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_metatensors_of_any_float_type_are_taken(tmp_path, kind):
    scan = MetaTensor(volume().to(kind))
    html, _ = written(tmp_path, report(), before=scan, after=scan)
    assert picture_of(html).size[0] > 1000


def bright_ball(centre: tuple[int, int, int], shape: tuple[int, int, int] = (40, 30, 20)) -> torch.Tensor:
    grid = np.indices(shape).reshape(3, -1).T
    near = np.linalg.norm(grid - np.array(centre), axis=1) < 4
    return torch.from_numpy(near.reshape(shape).astype(np.float32))


def test_planes_go_through_the_brightest_region():
    ball = bright_ball((30, 8, 13))
    ball[2, 2, 2], ball[0, 0, 0] = 50.0, math.nan
    _, voxel = pictures.planes(ball, bright_ball((30, 8, 13)), spacing_mm=SPACING, units="HU")
    assert voxel == pytest.approx((30, 8, 13), abs=1)


def images(shown: torch.Tensor, affine: torch.Tensor | None) -> list[np.ndarray]:
    figure, _ = pictures.planes(shown, shown, spacing_mm=SPACING, units="HU", affine=affine)
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images][:3]


def middle(image: np.ndarray) -> tuple[float, float]:
    """Return where the bright ball lies, as fractions from the left and from the top."""
    rows, columns = np.nonzero(image > 0.5)
    return columns.mean() / image.shape[1], rows.mean() / image.shape[0]


AFFINES = {
    "RAS": torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0])),
    "LPS": torch.diag(torch.tensor([-1.0, -2.0, 4.0, 1.0])),
}


@pytest.mark.parametrize(("affine", "ball"), [("RAS", (35, 25, 16)), ("LPS", (4, 4, 16))])
def test_radiological_view_shows_the_patients_right_on_the_left(affine, ball):
    """The ball lies right, anterior and superior in the patient, however the axes run."""
    axial, coronal, sagittal = images(bright_ball(ball), AFFINES[affine])
    for image in (axial, coronal, sagittal):
        left, top = middle(image)
        assert left < 0.3
        assert top < 0.3


def test_permuted_axes_are_turned_back():
    """Array axes S, R, A: the same ball gives the same pictures as with axes R, A, S."""
    turned = torch.zeros(4, 4)
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 4.0, 1.0, 2.0, 1.0
    straight = images(bright_ball((35, 25, 16)), AFFINES["RAS"])
    for one, other in zip(straight, images(bright_ball((35, 25, 16)).permute(2, 0, 1), turned), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_an_affine_axes_run_right_and_down_and_z_up():
    plane_xy, plane_xz, _ = images(bright_ball((35, 25, 16)), None)
    assert all(place > 0.7 for place in middle(plane_xy))
    assert middle(plane_xz)[0] > 0.7
    assert middle(plane_xz)[1] < 0.3


def test_pictures_keep_the_aspect_of_the_voxels():
    figure, _ = pictures.planes(volume(), volume(), spacing_mm=SPACING, units="HU")
    extents = [axes.get_window_extent() for axes in figure.axes if axes.images][:3]
    mm = [size * step for size, step in zip((20, 16, 12), SPACING, strict=True)]
    for extent, (w, h) in zip(extents, ((mm[0], mm[1]), (mm[0], mm[2]), (mm[1], mm[2])), strict=True):
        assert extent.width / extent.height == pytest.approx(w / h, rel=1e-3)


def test_windows_follow_the_modality_unless_the_scan_lies_outside():
    def shown(values, window):
        figure, _ = pictures.planes(values, values - 1, spacing_mm=SPACING, units="HU", window=window)
        panels = [axes.images[0] for axes in figure.axes if axes.images]
        return panels[0].get_clim(), panels[3].get_clim(), panels[6].get_clim()

    before, after, removed = shown(volume() * 50, (-160.0, 240.0))
    assert before == after == (-160.0, 240.0)
    assert removed == (-1.0, 1.0)
    low, high = shown(volume() + 4000, (-160.0, 240.0))[0]
    assert 4000 < low < high < 4020
