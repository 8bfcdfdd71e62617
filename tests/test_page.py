"""The page is valid, alone in the world, and safe; figures are repeatable."""

import csv
import dataclasses
import html.parser
import math
import re
import urllib.parse

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxprune import report, statistics
from jaxprune.report import canvas, figures, page
from jaxprune.report import html as html_lib

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


def chart(value=1.0):
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
  figure = page.Figure(chart=chart(), caption="Fig", alt="A line")
  text = render(sections=[dataclasses.replace(SECTION, figures=[figure])])
  assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
  reader = Reader(text)
  assert reader.find("html") == [{"lang": "en"}]
  assert {"charset": "utf-8"} in reader.find("meta")
  names = {attrs.get("name") for attrs in reader.find("meta")}
  assert {"viewport", "color-scheme"} <= names
  for tag in ("h1", "main", "body", "head", "style", "script", "header"):
    assert len(reader.find(tag)) == 1, tag
  assert reader.texts["h2"] == ["Tasks", "How this was measured"]
  assert reader.texts["p"][:3] == ["It works.", "Mostly.", "One."]
  panel = next(each for each in reader.find("div") if "role" in each)
  assert panel == {"class": "panels", "role": "img", "aria-label": "A line"}
  for table in re.findall("<table>.*?</table>", text, re.S):
    widths = {
      len(re.findall("<t[hd]", row))
      for row in re.findall("<tr>.*?</tr>", table)
    }
    assert len(widths) == 1
  assert text.encode("utf-8").isascii() is False  # real minus and dash signs


def test_the_finding_is_the_headline():
  parts = [page.Part(text="It is "), {"text": "lost", "tone": "bad"}]
  tile = page.estimate_tile(
    INTERVAL, "of all", unit="%", scale=100, about="KL", source=page.PAPER
  )
  step = page.Next(why="Next:", command="python -m x")
  reader = Reader(render(finding=parts, tiles=[tile], next=step))
  assert reader.texts["h1"] == ["It is lost"]
  assert reader.texts["title"] == ["A page"]
  assert {"class": "bad"} in reader.find("span")
  assert reader.texts["strong"] == ["49 %"]
  assert "[40, 57]" in reader.texts["ul"][0]
  assert reader.texts["pre"][-1] == "python -m x"
  assert reader.texts["p"][0] == "A page"  # what was measured, above it


@pytest.mark.parametrize(
  "text, first, rest",
  [
    ("It moved 0.5 nats. No more.", "It moved 0.5 nats.", "No more."),
    ("One.\n\nTwo.", "One.", "Two."),
    ("no stop", "no stop", ""),
    ("no stop\n\nTwo.", "no stop", "Two."),
    ("One. Two.\n\nThree.", "One.", "Two.\n\nThree."),
    ("Only one.", "Only one.", ""),
    ("", "", ""),
  ],
)
def test_a_first_sentence(text, first, rest):
  assert page.first_sentence(text) == (first, rest)


def test_nothing_is_fetched_and_nothing_else_runs():
  text = render(title=HOSTILE, verdict=HOSTILE)
  reader = Reader(text)
  for tag, attrs in reader.elements:
    assert tag not in ("iframe", "object", "base", "form"), tag
    for name, value in attrs.items():
      assert not name.startswith("on") and name != "style", name
      if name in ("src", "srcset", "action", "data"):
        assert value.startswith("data:"), value
      if name == "href":  # a link that somebody may follow
        assert value == page.PAPER or value.startswith(("data:", "#")), value
  style, script = reader.texts["style"][0], reader.texts["script"][0]
  assert "url(" not in style and "@import" not in style
  assert len(reader.find("script")) == 1 and reader.find("script")[0] == {}
  (policy,) = [
    attrs["content"]
    for attrs in reader.find("meta")
    if attrs.get("http-equiv") == "Content-Security-Policy"
  ]
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  assert rules["default-src"] == "'none'" and rules["base-uri"] == "'none'"
  assert rules["script-src"] == html_lib.csp_hash(script)
  assert rules["style-src"] == html_lib.csp_hash(style)


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
        figures=[page.Figure(chart=chart(), caption=HOSTILE, alt=HOSTILE)],
      )
    ],
  )
  reader = Reader(text)
  assert text.count("<script") == 1 and "http://e.com" in text
  for tag in ("title", "h1", "h2", "p", "figcaption", "th"):
    assert HOSTILE in reader.texts[tag], tag
  assert not reader.find("img")
  assert HOSTILE in [each.get("aria-label") for each in reader.find("div")]


@settings(max_examples=60, deadline=None)
@given(st.text())
@example("\x00\x1b[31m\ud800\x85\u202e")
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
    "\ufffd" if html_lib.FORBIDDEN.match(letter) else letter for letter in value
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
    r'<td class="num">0\.49 <span class="ends">\[0\.40, 0\.57\]</span>', row
  )
  assert "<td>–</td>" in row
  assert '<th scope="col" class="num">Dense</th>' in text
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
      dict(figures=[page.Figure(chart=b"GIF89a", caption="F", alt="x")]),
      "figure 'F': not a chart",
    ),
    (
      dict(
        figures=[
          page.Figure(chart=canvas.Chart(panels=()), caption="F", alt="")
        ]
      ),
      "figure 'F': alt is empty",
    ),
  ],
)
def test_bad_content(section, message):
  with pytest.raises(ValueError, match=message):
    render(sections=[page.Section(title="x", **section)])


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
  assert '<th scope="col" class="num">KL (nats)</th>' in text


def test_a_report_writes_its_named_figures(tmp_path):
  shown = page.Figure(chart=chart(), caption="F", alt="A line", name="steps")
  other = dataclasses.replace(shown, name="")
  content = dict(
    title="T",
    verdict="V",
    finding="F",
    sections=[page.Section(title="S", figures=[shown, other])],
    protocol={"T": 1.0},
  )
  description = RUN | {"flags": {}}
  with report.RunFolder(tmp_path / "out", description) as run:
    page.write_report(run, **content)
  (figure,) = (tmp_path / "out" / "figures").iterdir()
  assert figure.name == "steps.svg"
  assert figure.read_text().startswith(
    '<svg xmlns="http://www.w3.org/2000/svg"'
  )
  text = (tmp_path / "out" / "report.html").read_text()
  assert text == page.render_page(**content, run=description)


def test_a_table_can_be_taken_along():
  table = page.Table(
    caption="T",
    columns=("name", "kl"),
    rows=[["=1+1", INTERVAL], ["b", 1 / 3], [HOSTILE, None]],
    folded="All of it",
  )
  reader = Reader(render(sections=[page.Section(title="S", tables=[table])]))
  assert reader.texts["summary"][0] == "All of it"
  link = next(a for a in reader.find("a") if "download" in a)["href"]
  kind, _, content = link.partition(",")
  assert kind == "data:text/csv;charset=utf-8"
  rows = list(csv.reader(urllib.parse.unquote(content).splitlines()))
  assert rows[0] == ["name", "kl", "kl, low", "kl, high"]
  # No spreadsheet runs it as a formula, and numbers keep all their digits.
  assert rows[1][0] == "'=1+1" and float(rows[1][1]) == INTERVAL.value
  assert float(rows[2][1]) == 1 / 3 and rows[2][2:] == ["", ""]
  assert rows[3] == [HOSTILE, "", "", ""]
