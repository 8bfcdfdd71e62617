"""The page is valid, alone in the world, and safe; figures are repeatable."""

import dataclasses
import html.parser
import io
import math
import re

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxprune import report, statistics
from jaxprune.report import (
  attribution_figures,
  canvas,
  figures,
  page,
  stylesheet,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '</td><script>alert("x")</script>&amp;\'"><img src=http://e.com/x>'
RUN = {
  "made_by": "jaxprune",
  "command": f"prune --model={HOSTILE}",
  "flags": {"sparsity": 0.5, "prompts": None, "name": HOSTILE},
  "seeds": {"decoding": 12345},
  "checkpoint_hash": {"dense": "d" * 64, "pruned": "e" * 64},
  "calibration": {"source": "c4", "sequences": 128, "hash": "f" * 64},
  "versions": {"jax": "0.10", "absent": None},
  "device": {"platform": "cpu"},
}


class Reader(html.parser.HTMLParser):
  """Collects elements, and fails where tags do not nest."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.elements, self.texts = [], [], {}
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    assert len(names) == len(set(names)), (tag, names)
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
      self.texts.setdefault(tag, []).append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open:
      for tag in set(self.open):
        self.texts[tag][-1] += data
    else:
      assert not data.strip()

  def find(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def png(value=1.0):
  x = np.arange(3)
  return figures.lines({"cos_h": figures.Series(x=x, y=value * x)})


INTERVAL = statistics.mean(np.arange(40) / 40)
SECTION = page.Section(
  title="Tasks",
  paragraphs=["One.", " "],
  tables=[
    page.Table(
      caption="Scores",
      columns=("Task", "Dense", "Note"),
      rows=[["a", 0.25, "x"], ["b", INTERVAL, None], ["c", None, True]],
    )
  ],
)


def render(**changes):
  return page.render_page(
    **{
      "title": "A page",
      "verdict": "It works.\n\nMostly.",
      "run": RUN,
      "protocol": {"Context length": 512, "T": 1.0, "lens": "raw"},
      "sections": [SECTION],
    }
    | changes
  )


def test_valid_html():
  figure = page.Figure(png=png(), caption="Fig", alt="A line")
  text = render(sections=[dataclasses.replace(SECTION, figures=[figure])])
  assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
  reader = Reader(text)
  assert reader.find("html") == [{"lang": "en"}]
  assert {"charset": "utf-8"} in reader.find("meta")
  names = {attrs.get("name") for attrs in reader.find("meta")}
  assert {"viewport", "color-scheme"} <= names
  for tag in ("title", "h1", "main", "body", "head", "style"):
    assert len(reader.find(tag)) == 1, tag
  assert reader.texts["h2"] == ["Tasks", "How this was measured"]
  assert reader.texts["p"] == ["It works.", "Mostly.", "One."]
  assert reader.find("img")[0]["alt"] == "A line"
  for table in re.findall("<table>.*?</table>", text, re.S):
    widths = {
      len(re.findall("<t[hd]", row))
      for row in re.findall("<tr>.*?</tr>", table)
    }
    assert len(widths) == 1
  assert text.encode("utf-8").isascii() is False  # real minus and dash signs


def test_nothing_is_fetched_and_nothing_runs():
  reader = Reader(render(title=HOSTILE, verdict=HOSTILE))
  for tag, attrs in reader.elements:
    assert tag not in ("script", "iframe", "object", "base", "form"), tag
    for name, value in attrs.items():
      assert not name.startswith("on"), name
      if name in ("src", "href", "srcset", "action", "data"):
        assert value.startswith("data:"), value
  style = reader.texts["style"][0]
  assert "url(" not in style and "@import" not in style
  policy = [
    attrs["content"]
    for attrs in reader.find("meta")
    if attrs.get("http-equiv") == "Content-Security-Policy"
  ]
  assert policy and policy[0].startswith("default-src 'none'")


def test_hostile_text_is_shown_as_text_everywhere():
  text = render(
    title=HOSTILE,
    verdict=HOSTILE,
    protocol={HOSTILE: HOSTILE},
    sections=[
      page.Section(
        title=HOSTILE,
        paragraphs=[HOSTILE],
        tables=[
          page.Table(caption=HOSTILE, columns=(HOSTILE,), rows=[[HOSTILE]])
        ],
        figures=[page.Figure(png=png(), caption=HOSTILE, alt=HOSTILE)],
      )
    ],
  )
  reader = Reader(text)
  assert "<script" not in text and "http://e.com" in text
  for tag in ("title", "h1", "h2", "p", "figcaption", "th"):
    assert HOSTILE in reader.texts[tag], tag
  assert len(reader.find("img")) == 1
  assert reader.find("img")[0]["alt"] == HOSTILE


@settings(max_examples=60, deadline=None)
@given(st.text())
@example("\x00\x1b[31m\ud800\x85")
def test_any_text_survives(value):
  reader = Reader(
    render(
      sections=[
        page.Section(
          title="x",
          tables=[
            page.Table(caption="x", columns=("a", "b"), rows=[["r", value]])
          ],
        )
      ]
    )
  )
  shown = reader.texts["td"][0]
  shown.encode("utf-8")
  # The parser, like a browser, reads every line end as it stands in the file.
  expected = "".join(
    "\ufffd" if page._FORBIDDEN.match(letter) else letter for letter in value
  )
  assert shown == expected


def test_protocol_table():
  reader = Reader(render())
  text = " ".join(reader.texts["td"])
  for expected in (
    "512",
    "raw",
    "d" * 64,
    "e" * 64,
    "f" * 64,
    "decoding 12345",
    "source c4, sequences 128",
    "jax 0.10",
    "platform cpu",
    HOSTILE,
  ):
    assert expected in text, expected
  assert "absent" not in text
  single = Reader(render(run={"checkpoint_hash": "9" * 64, "command": "x"}))
  assert "9" * 64 in single.texts["td"]


def test_numbers_stand_on_the_right():
  text = render()
  row = re.search('<tr><th scope="row">b</th>.*?</tr>', text)[0]
  assert re.search(
    r'<td class=num>0\.49 <span class="ends">\[0\.40, 0\.57\]</span>', row
  )
  assert "<td>–</td>" in row
  assert '<th scope="col" class=num>Dense</th>' in text
  assert '<th scope="col">Note</th>' in text
  assert "<td>yes</td>" in text


@pytest.mark.parametrize(
  "value, expected",
  [
    (0, "0"),
    (0.0, "0"),
    (-0.0, "0"),
    (512, "512"),
    (1234567, "1\u202f234\u202f567"),
    (-3, "−3"),
    (0.25, "0.25"),
    (100.0, "100"),
    (99999.0, "99999"),
    (0.123456, "0.1235"),
    (9.99996, "10"),
    (-12.3456, "−12.35"),
    (0.00012, "0.00012"),
    (1e-7, "1·10⁻⁷"),
    (-2.5e12, "−2.5·10¹²"),
    (math.nan, "–"),
    (math.inf, "∞"),
    (-math.inf, "−∞"),
    (np.float64(0.5), "0.5"),
  ],
)
def test_format_number(value, expected):
  assert page.format_number(value) == expected


@pytest.mark.parametrize(
  "ends, expected",
  [
    ((0.5, 0.41, 0.62), ("0.50", "[0.41, 0.62]")),
    ((0.5, 0.4912, 0.5038), ("0.500", "[0.491, 0.504]")),
    ((-3.0, -14.2, 8.9), ("−3", "[−14, 9]")),
    ((0.1, 0.1, 0.1), ("0.1", "[0.1, 0.1]")),
    ((-0.001, -0.31, 0.3), ("0.00", "[−0.31, 0.30]")),
    ((2.0, math.nan, math.nan), ("2", "[no interval]")),
    ((2e9, 1e9, 3e9), ("2·10⁹", "[1·10⁹, 3·10⁹]")),
    ((2e-7, 1e-7, 3e-7), ("2·10⁻⁷", "[1·10⁻⁷, 3·10⁻⁷]")),
  ],
)
def test_estimates_in_a_cell(ends, expected):
  estimate = statistics.Estimate(*ends, 9)
  assert estimate.format(2) == " ".join(expected)
  table = page.Table(caption="T", columns=("a",), rows=[[estimate]])
  text = render(sections=[page.Section(title="S", tables=[table])])
  assert f'{expected[0]} <span class="ends">{expected[1]}</span>' in text


@pytest.mark.parametrize(
  "section, message",
  [
    (
      dict(tables=[page.Table(caption="T", columns=("a",), rows=[[1, 2]])]),
      "table 'T': a row has 2 cells and there are 1",
    ),
    (
      dict(figures=[page.Figure(png=b"GIF89a", caption="F", alt="x")]),
      "figure 'F': not a PNG",
    ),
    (
      dict(
        figures=[page.Figure(png=b"\x89PNG\r\n\x1a\n", caption="F", alt=" ")]
      ),
      "figure 'F': alt is empty",
    ),
  ],
)
def test_bad_content(section, message):
  with pytest.raises(ValueError, match=message):
    render(sections=[page.Section(title="x", **section)])


def test_colours_can_be_read():
  """Contrast of at least 4.5 in both settings, as WCAG asks of text."""

  def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    parts = [
      c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return np.dot([0.2126, 0.7152, 0.0722], parts)

  sets = re.findall(r":root \{(.*?)\}", stylesheet.STYLE, re.S)
  assert len(sets) == 3
  for each in sets:
    colours = dict(re.findall(r"--(\w+): (#\w{6})", each))
    for front, back in (
      ("ink", "page"),
      ("soft", "page"),
      ("ink", "panel"),
      ("soft", "panel"),
    ):
      low, high = sorted(luminance(colours[name]) for name in (front, back))
      assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back, each)


# --- figures ---------------------------------------------------------------


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
  "heat map": lambda: figures.heat_map(
    np.arange(12.0).reshape(3, 4), value="kl", log=True
  ),
  "one cell": lambda: figures.heat_map([[1.0]], value="kl"),
  "no cell": lambda: figures.heat_map([[np.nan]], value="kl", log=True),
  "scatter": lambda: figures.scatter_against_truth(
    np.logspace(-4, 0, 50), np.logspace(-4, 0.1, 50), x="kl", y="kl_estimate"
  ),
  "one pair": lambda: figures.scatter_against_truth(
    [0.1], [0.12], x="kl", y="kl_estimate"
  ),
  "no pair": lambda: figures.scatter_against_truth(
    [0.0, np.nan], [1.0, 1.0], x="kl", y="kl_estimate"
  ),
  "dots": lambda: figures.interval_dots(
    [f"row {index}" for index in range(10)],
    {"kl": [INTERVAL] * 9 + [None]},
    x="kl",
    reference=0.5,
  ),
  "scores": lambda: figures.score_against_feature(
    [0, 0.1, 0.2],
    [1, 0.9, 0.1],
    np.array([True, False, True]),
    {"a": np.array([True, True, False]), "b": np.arange(3) == 2},
    x="mean_kl",
    keep=0.9,
    threshold=0.15,
  ),
  "bars": lambda: attribution_figures.contribution_bars(
    [INTERVAL, INTERVAL], [INTERVAL, INTERVAL], y="share", completeness="all"
  ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_repeatable_and_fit(name):
  first = DRAWN[name]()
  # The reader's own settings must not matter.
  with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
    assert DRAWN[name]() == first
  picture = Image.open(io.BytesIO(first))
  assert picture.format == "PNG" and not picture.text
  assert 600 < picture.width < 1300 and 500 < picture.height < 900
  pixels = np.asarray(picture.convert("L"), float)
  assert pixels.std() > 1  # something is drawn
  # Nothing is cut off: ink does not touch the border.
  border = np.concatenate(
    [
      pixels[:2].ravel(),
      pixels[-2:].ravel(),
      pixels[:, :2].ravel(),
      pixels[:, -2:].ravel(),
    ]
  )
  assert border.min() == 255


def test_figures_show_the_data():
  assert png(1.0) != png(2.0)
  good = np.array([0.1, 0.2])
  options = dict(x="kl", y="kl_estimate")
  some_missing = figures.scatter_against_truth(
    np.append(good, 0), np.append(good, 1), **options
  )
  assert some_missing != figures.scatter_against_truth(good, good, **options)
  with pytest.raises(ValueError, match=r"shape \[3\]"):
    figures.heat_map(np.zeros(3), value="kl")


def test_dots_need_one_entry_per_label():
  one = statistics.mean([1.0, 2, 4])
  draw = figures.interval_dots
  png = draw(["a", "b"], {"kl": [one, None]}, x="kl", log_x=True)
  assert png.startswith(b"\x89PNG") and png == draw(
    ["a", "b"], {"kl": [one, None]}, x="kl", log_x=True
  )
  assert png != draw(["a", "b"], {"kl": [one, one]}, x="kl", log_x=True)
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
  styles = {
    name: canvas.style_of(name, index) for index, name in enumerate(names)
  }
  assert styles["cos_p"] == canvas._STYLES["_p"]
  assert styles["cos_h"] == canvas._STYLES["_h"]
  assert styles["cos_z_centred"] == canvas._STYLES["_z_centred"]
  assert styles["rho_z"] == canvas._STYLES["_z"]
  looks = list(canvas._STYLES.values())
  for part in range(3):  # colour, line style and marker each tell them apart
    assert len({look[part] for look in looks}) == len(looks)


# --- from a summary to the page --------------------------------------------


def test_stored_estimates_are_cells():
  table = page.estimate_table(
    "Means.",
    "model",
    {"kl": "KL (nats)", "flips": "flips", "n": "positions"},
    {
      "half": {"kl": INTERVAL.to_json(), "n": 40},
      "none": {
        "kl": {"value": 0.5, "low": None, "high": None, "count": 1},
        "flips": None,
        "n": 3,
      },
    },
  )
  assert table.columns == ("model", "KL (nats)", "flips", "positions")
  text = render(sections=[page.Section(title="S", tables=[table])])
  value, ends = INTERVAL.format(2).split(" ", 1)
  assert f'{value} <span class="ends">{ends}</span>' in text
  assert '0.5 <span class="ends">[no interval]</span>' in text
  assert '<th scope="col" class=num>KL (nats)</th>' in text


def test_a_report_writes_its_named_figures(tmp_path):
  shown = page.Figure(png=png(), caption="F", alt="A line", name="steps")
  other = dataclasses.replace(shown, name="")
  content = dict(
    title="T",
    verdict="V",
    sections=[page.Section(title="S", figures=[shown, other])],
    protocol={"T": 1.0},
  )
  description = RUN | {"flags": {}}
  with report.RunFolder(tmp_path / "out", description) as run:
    page.write_report(run, **content)
  (figure,) = (tmp_path / "out" / "figures").iterdir()
  assert figure.name == "steps.png" and figure.read_bytes() == shown.png
  text = (tmp_path / "out" / "report.html").read_text()
  assert text == page.render_page(**content, run=description)
