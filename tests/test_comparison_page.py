"""The page of a comparison: what the summary holds, and nothing else."""

import dataclasses
import re

import comparison_made as made
import numpy as np
import pytest

from jaxprune import report
from jaxprune.studies.comparison import attribution, finding, page, written

TASKS = {
  "choose": made.task(95, 94, 0.25, items=400),
  "generate": made.task(90, 20),
  "story": made.task(27, 28, 0.25),
}


@pytest.fixture(scope="module")
def tables():
  return made.tables(prompts=14)


@pytest.fixture(scope="module")
def summary(tables):
  return made.summary(tables, TASKS)


@pytest.fixture(scope="module")
def text(tables, summary, tmp_path_factory):
  return made.write(tmp_path_factory.mktemp("made") / "out", tables, summary)


def test_the_first_screen(text, summary):
  about = re.search('<p class="about">(.*?)</p>', text)[1]
  assert about == (
    "made (134.5 M parameters) · wanda 2:4 · 50 % zeros · 14 prompts × 8 tokens"
    " · 27 Nov 2026"
  )
  headline = re.search("<h1>(.*?)</h1>", text)[1]
  assert headline == (
    '<span class="care">With care for choose and story</span>; <span'
    ' class="bad">not fit for generate</span> (measured)'
  )
  tiles = re.findall("<strong>(.*?)</strong> (.*?) <span", text)
  assert [label for _, label in tiles] == [
    "next tokens changed",
    "tokens in common when it writes alone",
    "mean KL",
    "generate, accuracy",
  ]
  flip = 100 * summary["output"]["flip"]["value"]
  assert tiles[0][0] == f"{flip:.1f} %" and tiles[1][0].endswith(" of 8")
  assert tiles[3][0] == "0.9 → 0.20"


def test_texts_are_there_worst_first_and_safe(text, summary):
  entries = summary["texts"]
  assert len(entries) == 12 and summary["alone"]["texts"] == 14
  shares = [entry["agrees"] / entry["steps"] for entry in entries]
  assert shares == sorted(shares)
  assert text.count('<article class="text"') == 12
  assert "8 more prompts, of 14 in all" in text
  assert text.count("<script") == 1 and "&lt;script&gt;alert" in text
  assert not re.search("[\x00-\x08\x1b\u202e\ud800-\udfff]", text)
  first = text[text.index('id="text-0"') : text.index('id="text-1"')]
  tokens = re.findall(r'<span class="t k(\d)( x)?" id="t0-(\d)" title=', first)
  worst = entries[0]
  assert [bool(changed) for _, changed, _ in tokens] == worst["flip"]
  shades = [round(9 * (1 - np.exp(-kl))) for kl in worst["kl"]]
  assert [int(shade) for shade, _, _ in tokens] == shades
  assert first.count("▼") == 1
  # A step of the map leads to a token that is there.
  for target in set(re.findall('href="#(t0-[^"]*)"', text)):
    assert f'id="{target}"' in text


def test_every_task_says_what_is_left(text):
  rows = re.findall(r"<tr><th scope=\"row\">(\w+) <small>.*?</tr>", text)
  assert rows == list(TASKS)
  states = re.findall(r'<td class="(\w*)">(kept|lost|unknown)', text)
  assert states == [("", "unknown"), ("bad", "lost"), ("", "unknown")]
  assert "the dense model may be near chance" in text


def test_what_is_not_there_is_left_out(tables, tmp_path):
  text = made.write(tmp_path / "out", tables, made.summary(tables))
  assert "On tasks" not in text and text.count("<strong>") == 3
  assert ">no longer writes what the original writes</span>." in text
  read = {
    "dense": {"value": 9.4, "low": 9.0, "high": 9.8, "count": 9},
    "pruned": {"value": 55.1, "low": 50.0, "high": 60.2, "count": 9},
    "tokens": 900,
  }
  summary = made.summary(tables, perplexity=read)
  text = made.write(tmp_path / "read", tables, summary)
  assert "<strong>9.4 → 55</strong> perplexity" in text


def test_the_same_text_is_said_to_be_the_same():
  tables = made.tables(size=0.0)
  summary = made.summary(tables)
  assert summary["alone"]["same"] == summary["alone"]["texts"] == 6
  assert summary["alone"]["value"] == 8
  parts = summary["finding"]["parts"]
  assert parts[1] == {"text": "writes what the original writes", "tone": "good"}
  assert "all of them stay the same" in summary["finding"]["lead"]


def test_a_verdict_is_a_sentence():
  verdict = {
    "choice": dict(state="kept", basis="measured", error=None, reason=""),
    "generation": dict(state="lost", basis="rule", error=0.06, reason=""),
  }
  summary = {
    "verdict": verdict,
    "alone": {"value": 2.0, "steps": 9.0, "texts": 3, "same": 1},
    "output": {"flip": {"value": 0.5}},
  }
  found = finding.find(summary)
  assert found["verdict"] == verdict
  assert "".join(part["text"] for part in found["finding"]["parts"]) == (
    "Fit for choosing an answer; not fit for writing an answer (measured and"
    " by a rule that is wrong in 6 % of cases)"
  )
  assert "1 of 3 texts stays the same" in found["finding"]["lead"]


def test_pieces_are_the_text():
  """A letter of several tokens stands at the last of them."""
  parts = [b" a", b"\xc3", b"\xa9", b"!", b"\xf0\x9f"]

  def read(ids):
    return b"".join(parts[i] for i in ids).decode("utf-8", "replace")

  tables = made.tables(prompts=1, steps=5)
  ids = np.arange(5)
  for name in ("token", "token_dense", "token_pruned"):
    tables.output[name] = ids
  tables.alone["token"] = ids[::-1]
  tables = dataclasses.replace(tables, prompts=((0, 0),))
  (text,) = written.summarise(tables, read)["texts"]
  assert text["tokens"] == [" a", "", "é", "!", "\ufffd"]
  assert text["agrees"] == 0


def test_amounts_of_a_model():
  summary = {"subject": made.SUBJECT | {"zeros": 0.0}, "prompts": 2}
  settings = made.Settings(max_new_tokens=3)
  assert "as many zeros as the original" in page.about(summary, settings)
  changes = {"dropped": 3, "removed": 2_000_000, "method": None}
  summary["subject"] |= changes
  line = page.about(summary, settings)
  assert "3 sublayers dropped · 2 M parameters removed" in line


def test_a_prompt_is_shown_without_its_chat_template():
  frame = (
    "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  said = ["What is it?", "What was it?\nSay it"]
  prompts = [frame.format(text) for text in said]
  assert written.without_frame(prompts) == said
  assert written.without_frame(["What is", "What was"]) == [
    "What is",
    "What was",
  ]
  assert written.without_frame(prompts[:1]) == prompts[:1]
  assert written.without_frame(["a", "a"]) == ["a", "a"]
  assert written.without_frame(["<s> Once", "<s> Two"]) == ["Once", "Two"]
  (text,) = written.without_frame(["x" * 1000])
  assert len(text) == 322 and text.startswith("… x")


def _run(folder, summary, hashes):
  """A finished run folder with a given summary."""
  description = report.describe_run(
    flags={}, command=["x"], seeds={}, checkpoint_hash=hashes
  )
  with report.RunFolder(folder, description) as run:
    run.write_summary(summary)
  return str(folder)


def test_what_an_earlier_run_says_of_the_cause(tmp_path):
  pair = {"dense": "a", "pruned": "b"}
  parts = {kind: {"kl": {"value": 0.1}} for kind in ("attention", "mlp")}
  entry = {
    **{"source": "pruned", "configuration": "pruned", "by_kind": parts},
    **{"change": {"kl": {"value": 0.2}}, "largest": [["mlp 3", 0.15]]},
  }
  divided = _run(
    tmp_path / "divided", {"models": [entry], "completeness_error": 0.0}, pair
  )
  found = attribution.read(divided, pair)
  assert "most of it mlp 3 (75 %)." in found["sentence"]
  alone = [
    {"sublayer": kind, "layer": i, "kl": {"value": kl}}
    for kind, i, kl in (("mlp", 0, 2.0), ("attention", 1, 0.5), ("block", 0, 9))
  ]
  single = _run(tmp_path / "single", {"single": alone}, "a")
  ablated = attribution.read(single, pair)
  assert ablated["rows"] == [["MLP 0", 2.0], ["attention 1", 0.5]]
  summary = made.summary(made.tables(), attribution=ablated)
  text = made.write(tmp_path / "page", made.tables(), summary)
  assert "Which weights cause it" in text and "least without the" in text
  for folder in (divided, single):
    with pytest.raises(ValueError, match="was not measured on the same"):
      attribution.read(folder, {"dense": "c", "pruned": "b"})
  with pytest.raises(ValueError, match="no finished run"):
    attribution.read(str(tmp_path), pair)
