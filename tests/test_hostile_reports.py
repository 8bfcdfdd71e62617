"""Names and texts from elsewhere do nothing in a report, and break no page."""

import html.parser
import re

import pytest

from jaxprune.report import records
from jaxprune.studies.tasks import page

ODD = (
  '</td></table><script>alert(1)</script><img src=x onerror="alert(1)">',
  "\x1b[31m\x00\x07 \ud800 \u202egnp.exe",
  "javascript:alert(1)//'\"`${{7*7}}{% raw %}",
  "x" * 100_000,
)


class Nesting(html.parser.HTMLParser):
  """Elements and attributes; fails where tags do not nest."""

  def __init__(self, text):
    super().__init__()
    self.open, self.found, self.attributes = [], [], set()
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.found.append(tag)
    self.attributes |= {name for name, _ in attrs}
    if tag not in ("meta", "link", "img", "br", "hr", "input"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def written(folder, word) -> str:
  estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9}
  summary = {
    "models": ["model"],
    "tasks": {word: {word: {"model": estimate}}},
    "rules": {word: {word: word}},
  }
  description = {
    "made_by": "jaxprune",
    "command": f"evaluate --choice={word}",
    "flags": {"choice": [word], word: word},
    "seeds": {"bootstrap": 0},
  }
  with records.RunFolder(folder, {"made_by": "jaxprune"}) as run:
    run.write_page(page.render(summary, description))
  return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", ODD, ids=("tags", "control", "code", "long"))
def test_a_page_shows_text_as_text(tmp_path, word):
  plain = Nesting(written(tmp_path / "plain", "choice"))
  text = written(tmp_path / "odd", word)
  odd = Nesting(text)
  assert odd.found.count("script") == plain.found.count("script")
  assert set(odd.found) == set(plain.found)
  assert not [name for name in odd.attributes if name.startswith("on")]
  assert not re.search(
    "[\x00-\x08\x0b\x0e-\x1f\u202a-\u202e\ud800-\udfff]", text
  )
