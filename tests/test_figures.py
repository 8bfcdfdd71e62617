"""Figures of a page: what they show, and that they are the same each time."""

import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import report, statistics
from jaxprune.report import (
  attribution_figures,
  canvas,
  figures,
  maps,
  page,
  points,
)
from jaxprune.report import html as html_lib
from tests.test_page import HOSTILE, INTERVAL, RUN, Reader, chart, render


def test_colours_can_be_read():
  """Contrast of at least 4.5 in both settings, as WCAG asks of text."""

  def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    parts = [
      c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return np.dot([0.2126, 0.7152, 0.0722], parts)

  sets = re.findall(r":root \{(.*?)\}", html_lib.read_asset("page.css"), re.S)
  assert len(sets) == 3
  for each in sets:
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", each))
    for front, back in (
      *((front, "page") for front in ("ink", "soft", "accent")),
      *((front, "page") for front in ("good", "care", "bad")),
      ("ink", "panel"),
      ("soft", "panel"),
      ("accent", "panel"),
    ):
      low, high = sorted(luminance(colours[name]) for name in (front, back))
      assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back, each)


def series(n, base=0.9):
  y = base - np.linspace(0, 0.1, n)
  return figures.Series(x=np.arange(n), y=y, low=y - 0.1, high=y + 0.05)


def spaces(n):
  return {
    name: series(n, 0.9 + 0.02 * index)
    for index, name in enumerate(("cos_h", "cos_z", "cos_z_centred", "cos_p"))
  }


RNG = np.random.default_rng(0)


DRAWN = {
  "lines": lambda: figures.lines(spaces(60)),
  "one point": lambda: figures.lines(spaces(1)),
  "gaps": lambda: figures.lines(
    {"kl": figures.Series(x=np.arange(4), y=np.array([1, np.nan, 0, 2.0]))},
    log_y=True,
  ),
  "never positive": lambda: figures.lines(
    {"kl": figures.Series(x=np.arange(2), y=np.zeros(2))}, log_y=True
  ),
  "nothing": lambda: figures.lines({}),
  "layers": lambda: figures.lines_by_sublayer(spaces(28), spaces(28)),
  "one layer": lambda: figures.lines_by_sublayer(spaces(1), {}),
  "heat map": lambda: maps.heat_map(
    np.arange(12.0).reshape(3, 4), value="kl", log=True
  ),
  "one cell": lambda: maps.heat_map([[1.0]], value="kl"),
  "no cell": lambda: maps.heat_map([[np.nan]], value="kl", log=True),
  "scatter": lambda: maps.scatter_against_truth(
    np.logspace(-4, 0, 50), np.logspace(-4, 0.1, 50), x="kl", y="kl_estimate"
  ),
  "one pair": lambda: maps.scatter_against_truth(
    [0.1], [0.12], x="kl", y="kl_estimate"
  ),
  "no pair": lambda: maps.scatter_against_truth(
    [0.0, np.nan], [1.0, 1.0], x="kl", y="kl_estimate"
  ),
  "dots": lambda: points.interval_dots(
    [f"row {index}" for index in range(10)],
    {"kl": [INTERVAL] * 9 + [None]},
    x="kl",
    reference=0.5,
  ),
  "scores": lambda: points.score_against_feature(
    [0, 0.1, 0.2],
    [1, 0.9, 0.1],
    np.array([True, False, True]),
    {"a": np.array([True, True, False]), "b": np.arange(3) == 2},
    x="mean_kl",
    keep=0.9,
    threshold=0.15,
  ),
  "cloud": lambda: maps.scatter_against_truth(
    np.logspace(-4, 0, 900), np.logspace(-4, 0.1, 900), x="kl", y="kl_estimate"
  ),
  "linked map": lambda: maps.heat_map(
    np.arange(12.0).reshape(3, 4), value="kl", link=lambda step: f"#t0-{step}"
  ),
  "paired bars": lambda: figures.paired_bars(
    ("Options", ["a", "<b>"], [0.1, 0.5], [0.4, math.nan], "mass")
  ),
  "bars": lambda: attribution_figures.contribution_bars(
    [INTERVAL, INTERVAL], [INTERVAL, INTERVAL], y="share", completeness="all"
  ),
  "stacks": lambda: attribution_figures.stacked_steps(
    {"layers 0–1": np.array([0.1, -0.2])},
    {"layers 0–1": np.array([0.3, 0.4])},
    np.array([0.4, 0.2]),
    y="kl",
  ),
  "influence": lambda: attribution_figures.time_influence(
    {"layer 0": np.array([[0.1, np.nan], [0.2, -0.3]])}, value="kl"
  ),
  "pairs": lambda: attribution_figures.pair_table(np.eye(4), value="kl"),
}


def numbers_of(element):
  """Every number that places an element."""
  names = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
  found = [float(element.get(name, 0)) for name in names[:-2]]
  path = re.findall(r"-?[\d.]+", element.get("d", ""))
  return found + [float(number) for number in path]


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_repeatable_and_fit(name, tmp_path):
  drawn = DRAWN[name]()
  assert drawn == DRAWN[name]()
  shown = page.Figure(chart=drawn, caption="F", alt=HOSTILE, name="f")
  section = page.Section(title="S", figures=[shown])
  with report.RunFolder(tmp_path / "out", RUN | {"flags": {}}) as run:
    page.write_report(run, title="T", verdict="V", sections=[section])
  Reader((tmp_path / "out/report.html").read_text())
  text = (tmp_path / "out/figures/f.svg").read_text()
  svg = xml.etree.ElementTree.fromstring(text)  # it is well formed
  assert svg.get("aria-label") == HOSTILE
  panels = [each for each in svg if each.tag.endswith("}svg")]
  assert len(panels) == len(drawn.panels) > 0
  for panel in panels:
    width, height = float(panel.get("width")), float(panel.get("height"))
    for element in panel.iter():
      numbers = numbers_of(element)
      assert np.isfinite(numbers).all()
      assert min(numbers, default=0) >= 0 and max(numbers) <= max(width, height)
    assert any(each.tag.endswith("}text") for each in panel)
  if name not in ("nothing", "one layer", "no pair", "no cell", "one cell"):
    assert "<title>" in text  # it can be pointed at


def test_figures_show_the_data():
  assert chart(1.0) != chart(2.0)
  good = np.array([0.1, 0.2])
  options = dict(x="kl", y="kl_estimate")
  some_missing = maps.scatter_against_truth(
    np.append(good, 0), np.append(good, 1), **options
  )
  assert some_missing != maps.scatter_against_truth(good, good, **options)
  assert some_missing.panels[0].note == "not shown: 1 (not finite or positive)"
  with pytest.raises(ValueError, match=r"shape \[3\]"):
    maps.heat_map(np.zeros(3), value="kl")
  text = render(
    sections=[
      page.Section(
        title="S",
        figures=[page.Figure(chart=chart(), caption="F", alt="A line")],
      )
    ]
  )
  titles = Reader(text).texts["title"]
  assert "decoding step 2\ncosine of hidden states h: 2" in titles


def test_axes_ignore_stray_extremes():
  usual = np.linspace(0.1, 0.2, 200)
  low, high = canvas.span(np.append(usual, 1e6))
  assert 0 <= low <= 0.1 and 0.2 <= high < 0.4
  low, high = canvas.span(np.append(usual, 1e-9), log=True)
  assert 0.01 < low <= 0.1
  assert canvas.span(usual)[1] >= 0.2 and canvas.span([0.5]) != (0.5, 0.5)
  stray = figures.lines({"kl": figures.Series(x=range(201), y=[*usual, 1e6])})
  assert stray.panels[0].note == "1 beyond the axis, drawn at its edge"


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.booleans(), st.booleans())
def test_ticks_stand_on_the_axis(low, width, log, whole):
  if log:
    low = abs(low) + 1e-6
  width = max(width, 1e-6 * abs(low))
  scale = canvas.Scale(low, low + width, 50, 500, log)
  ticks = canvas.ticks(scale, whole=whole)
  places = [tick.at for tick in ticks]
  assert places == sorted(places) and len(places) < 15
  assert all(50 <= place <= 500 for place in places)
  assert scale(low) == 50 and scale(low + width) == 500


def test_dots_need_one_entry_per_label():
  one = statistics.mean([1.0, 2, 4])
  draw = points.interval_dots
  drawn = draw(["a", "b"], {"kl": [one, None]}, x="kl", log_x=True)
  assert drawn == draw(["a", "b"], {"kl": [one, None]}, x="kl", log_x=True)
  assert drawn != draw(["a", "b"], {"kl": [one, one]}, x="kl", log_x=True)
  with pytest.raises(ValueError, match="'kl' has 1 entries for 2 labels"):
    draw(["a", "b"], {"kl": [one]}, x="kl")


def test_a_line_of_estimates():
  known, alone = statistics.mean([1.0, 2, 4]), statistics.mean([5.0])
  got = figures.estimated([0, 3], [known, alone])
  np.testing.assert_array_equal(got.x, [0, 3])
  np.testing.assert_array_equal(got.y, [7 / 3, 5])
  np.testing.assert_array_equal(got.low, [known.low, np.nan])
  np.testing.assert_array_equal(got.high, [known.high, np.nan])


def test_a_space_looks_the_same_in_every_figure():
  names = ("cos_p", "cos_h", "cos_z_centred", "rho_z")
  looks = {name: canvas.look_of(name, i) for i, name in enumerate(names)}
  assert list(looks.values()) == ["p", "h", "z-centred", "z"]
  style = html_lib.read_asset("page.css")
  dashes = [
    re.search(rf"^\.{look} {{ --series: var\(--{look}\);(.*)}}$", style, re.M)[
      1
    ]
    for look in looks.values()
  ]
  assert len(set(dashes)) == len(dashes)  # dashes tell them apart in print
