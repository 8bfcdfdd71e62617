"""What is kept, and why writing fails, on scores that are counted by hand."""

import math

import numpy as np

from jaxprune.report import page as report_page
from jaxprune.studies.sweep import accounts, figures, page, retained, summary


def entry(name, metric, values, **more):
  columns = {metric: values} | more
  return {"columns": columns, "weights": None, "named": name}


def score(configuration, passed, acc, **more):
  return {
    "configuration": configuration,
    "seed": 0,
    "removed": 0.5,
    "tasks": {
      "humaneval": entry("humaneval", "passed", passed),
      "mmlu": entry("mmlu", "acc", acc, writes=acc),
    },
  } | more


# Item 2 has no text of the dense model, and item 3 is wrong in any case.
PATH = {
  "items": [0, 1, 3],
  "tokens": [4.0, 2.0, 4.0],
  "flips": [1.0, 0.0, 0.0],
  "sure_flips": [0.0, 0.0, 1.0],
  "first_flip": [2.0, 2.0, 4.0],
  "kl": [0.5, 0.1, 9.0],
}
DENSE = score("dense", [1.0, 1, 0, 0], [1.0] * 96 + [0] * 4)
PRUNED = score(
  "wanda:0.5",
  [1.0, 0, 0, 0],
  [1.0] * 48 + [0] * 52,
  paths={"humaneval": {"written": PATH}},
)
GROUPED = {"dense": [DENSE], "wanda:0.5": [PRUNED]}


def test_accounts_by_hand():
  (found,) = accounts.accounts(GROUPED)["entries"]
  assert (found["items"], found["measured"]) == (2, 0.5)
  assert found["flip_rate"] == found["sure_flip_rate"] == 0.1
  np.testing.assert_allclose(found["independent"], (0.9**4 + 0.9**2) / 2)
  np.testing.assert_allclose(found["sure"], found["independent"])
  np.testing.assert_allclose(found["kl"], (math.exp(-0.5) + math.exp(-0.1)) / 2)
  assert found["unchanged"] == 0.5
  # The changed text is the one that stayed right: a paraphrase.
  assert (found["changed"], found["forgiven_count"]) == (1, 1)


def test_published_solutions_by_hand():
  path = {
    "items": [0, 1],
    "tokens": [4.0, 6.0],
    "flips": [1.0, 0.0],
    "misses": [2.0, 3.0],
    "dense_misses": [1.0, 3.0],
    "nll": [8.0, 2.0],
    "dense_nll": [4.0, 1.0],
  }
  pruned = PRUNED | {"paths": {"gsm8k": {"reference": path}}}
  (found,) = accounts.references({"dense": [DENSE], "wanda:0.5": [pruned]})
  values = {
    name: found[name]["value"]
    for name in found
    if name not in ("configuration", "task")
  }
  assert values == {
    "flips": 0.1,
    "misses": 0.5,
    "dense_misses": 0.4,
    "perplexity": math.e,
    "dense_perplexity": math.exp(0.5),
  }


def test_fits_need_three_configurations():
  grouped = {"dense": [DENSE]} | {
    name: [PRUNED | {"configuration": name}] for name in ("a", "b", "c")
  }
  few, many = accounts.accounts(GROUPED), accounts.accounts(grouped)
  assert not few["fits"] and not accounts.headline(few)
  fit = many["fits"]["unchanged"]
  assert (fit["count"], fit["error"]["value"], fit["bias"]["value"]) == (
    3,
    0,
    0,
  )
  said = accounts.headline(many)
  assert said.startswith(
    "of 3 right answers whose text changed, 3 stayed right"
  )
  assert "'unchanged' is nearest" in said


def test_retained_is_above_chance():
  entries = retained.retained(GROUPED)
  assert [(found["task"], found["use"]) for found in entries] == [
    ("mmlu", "choice"),
    ("mmlu", "one token"),
    ("humaneval", "generation"),
  ]
  choice, written, code = entries
  np.testing.assert_allclose(choice["value"], (0.48 - 0.25) / (0.96 - 0.25))
  np.testing.assert_allclose(written["value"], 0.5)
  assert (choice["state"], written["state"]) == ("lost", "lost")
  assert (code["state"], code["value"]) == ("unknown", 0.5)
  assert retained.headline(entries) == [
    "wanda:0.5 lost: mmlu 0.32, mmlu 0.50 (one token); unknown: humaneval 0.50"
  ]


def test_tasks_of_a_use_together():
  """Every item counts once, less the chance of its own task."""

  def score_of(name, passed, acc, sums):
    made = score(name, passed, acc)
    made["tasks"]["piqa"] = entry("piqa", "acc", sums)
    return made

  dense = score_of("dense", [1.0, 1, 1, 0], [1.0] * 60, [1.0] * 20)
  worse = score_of("drop_mlp:2", [1.0, 0, 0, 0], [1.0] * 60, [1.0, 0] * 10)
  choice, token, code = retained.by_use(
    {"dense": [dense], "drop_mlp:2": [worse]}
  )
  assert (choice["use"], token["use"], code["use"]) == (
    "choice",
    "one token",
    "generation",
  )
  above = 60 * 0.75 + 20 * 0.5
  assert (choice["tasks"], choice["count"]) == (2, 80)
  np.testing.assert_allclose(choice["value"], (above - 10) / above)
  np.testing.assert_allclose(code["value"], 1 / 3)
  assert choice["less_than_choice"] is None
  gap = code["less_than_choice"]
  np.testing.assert_allclose(gap["value"], choice["value"] - code["value"])
  assert gap["low"] < 0 < gap["value"] < gap["high"]  # four items tell little


def test_figure_of_what_is_kept():
  def kept(name, use, value):
    ends = {"low": value - 0.1, "high": value + 0.1, "count": 9}
    return {"configuration": name, "use": use, "value": value} | ends

  assert figures.kept_by_amount([kept("wanda:0.5", "choice", 0.9)]) is None
  names = (
    "wanda:0.5",
    "wanda:0.3",
    "wanda:2:4",
    "rtn:3",
    "rtn:4",
    "drop_mlp:2",
  )
  made = figures.kept_by_amount(
    [kept(name, use, 0.5) for name in names for use in ("choice", "generation")]
  )
  (panel,) = made.chart.panels
  assert panel.title == "wanda"
  assert [label for _, label in made.chart.legend] == ["choice", "generation"]


def test_the_page_says_both():
  numbers = summary.summarise([DENSE, PRUNED])
  assert summary.headline(numbers).startswith("wanda:0.5 lost: mmlu 0.32")
  shown = report_page.render_page(**page.content(numbers), run={})
  assert "What is kept" in shown and "Why writing fails" in shown
