"""A rule for any model: what it reads, what it learns, what it may not see."""

import json
import math
import pathlib

import numpy as np
import pytest

from jaxprune import statistics
from jaxprune.studies.guidance import (
  cases,
  shifts,
  shipped,
  shipped_page,
  transfer,
)
from tests.guidance_sweeps_made import (
  measurements,
  write_configuration,
  write_dense,
)

METHODS = ("magnitude", "wanda", "sparsegpt", "ria")
DAMAGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def write_model(folder, dense, limit=0.3, kind="acc"):
  """A sweep whose task, of 200 items, is lost above the damage `limit`."""
  write_dense(folder, dense, right=200)
  write_configuration(folder, "dense", "dense", 0, 0.0, 200, items=200)
  for place, method in enumerate(METHODS):
    for damage in DAMAGES:
      value = damage * (1 + 0.02 * place)
      write_configuration(
        folder,
        f"{method}{damage}-seed0",
        f"{method}:{damage}",
        0,
        value,
        200 if value < limit else 60,
        items=200,
      )
  for path in (folder / "configurations").glob("*.json"):
    score = json.loads(path.read_text())
    if "tasks" in score:
      score["tasks"] = {
        "text": score["tasks"]["text"],
        "asked": {
          "columns": {kind: score["tasks"]["choose"]["columns"]["acc"]},
          "weights": None,
          "chance": 0.0,
        },
      }
    else:
      score |= {"model": f"somewhere/{dense}", "prompts": "x/asked.jsonl"}
    path.write_text(json.dumps(score))
  return folder


def read(*folders, **others):
  return cases.read_cases([str(each) for each in folders], keep=0.9, **others)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("models")
  return [write_model(root / name, name) for name in "abc"]


@pytest.fixture(scope="module")
def found(folders):
  return read(*folders)


@pytest.fixture(scope="module")
def rule(found):
  return shipped.make_rule(found, transfer.learn(found), 0.9)


def test_shifts_by_hand():
  table = {
    "kl": [0.0, 0.4],
    "tv": [0.0, 0.2],
    "one_minus_cos_h": [0.1, 0.3],
    "one_minus_cos_z_centred": [0.1, 0.1],
    "one_minus_cos_p": [0.0, 0.0],
    "flip": [False, True],
    "entropy": [0.0, math.log(4)],
    "max_abs_dz": [0.0, 1.0],
  }
  result = {name: math.exp(x) for name, x in shifts.shifts(table).items()}
  assert result["kl"] == pytest.approx(0.2)
  # The second position counts a quarter, as one of four equal tokens.
  assert result["kl_sure"] == pytest.approx(0.25 * 0.4 / 1.25)
  assert result["tv_sure"] == pytest.approx(0.25 * 0.2 / 1.25)
  assert result["flips"] == pytest.approx(1.5 / 3)
  assert result["flips_sure"] == pytest.approx(0.75 / 2.25)
  assert result["kl_relative"] == pytest.approx(0.2 / (math.log(4) / 2 + 0.01))
  assert result["h"] == pytest.approx(0.2)
  assert result["p"] == pytest.approx(1e-7)  # no change has no logarithm
  assert not shifts.is_unchanged(table)
  assert shifts.is_unchanged(measurements(0.0, 0))


def test_more_damage_is_a_larger_shift():
  less, more = (shifts.shifts(measurements(*d)) for d in ((0.1, 1), (1.5, 9)))
  assert all(more[name] > less[name] for name in shifts.SHIFTS)


def test_shifts_refuse():
  for change, words in (
    ({"kl": [math.nan] * 20}, "kl is not finite at 20 of 20"),
    ({"tv": [0.0]}, "one value per position"),
    ({"entropy": None}, "lack entropy"),
  ):
    table = measurements(0.1, 1) | change
    with pytest.raises(ValueError, match=words):
      shifts.shifts({k: v for k, v in table.items() if v is not None})


def test_cases(found):
  assert len(found.cases) == 3 * 24 and not found.left_out
  case = found.cases[0]
  assert (case.kind, case.name, case.task) == ("choice", "a", "asked")
  assert {c.retention.state for c in found.cases} == {"kept", "lost"}
  worst = max(found.cases, key=lambda c: c.shifts["kl"])
  assert worst.retention.value == pytest.approx(0.3)
  # exp(1 + damage) over exp(1).
  assert worst.shifts["perplexity"] == pytest.approx(1.06)
  assert [source["model"] for source in found.sources] == ["a", "b", "c"]
  assert found.sources[0]["tasks"]["asked"]["items"] == 200
  assert found.sources[0]["prompts"] == "asked.jsonl"


def test_a_copy_counts_once(folders, found):
  twice = read(*folders, folders[0])
  assert len(twice.cases) == len(found.cases)
  assert "a: magnitude:0.02 seed 0: asked: is in an earlier sweep too" in (
    twice.left_out
  )


def test_near_chance_is_left_out_and_said_once(tmp_path):
  folder = write_model(tmp_path, "d")
  path = folder / "configurations/dense.json"
  score = json.loads(path.read_text())
  score["tasks"]["asked"]["columns"]["acc"] = [1.0, 0.0] * 100
  score["tasks"]["asked"]["chance"] = 0.5
  path.write_text(json.dumps(score))
  with pytest.raises(ValueError, match="d: asked: .* near chance"):
    read(folder)


def test_tasks_known_by_name_say_what_counts(tmp_path):
  """Which column, and what it asks of a model; a text is only read."""
  folder = write_model(tmp_path, "d")
  for path in (folder / "configurations").glob("*.json"):
    score = json.loads(path.read_text())
    if "tasks" not in score:
      continue
    right = score["tasks"]["asked"]["columns"]["acc"]
    named = {
      "arc_challenge": {"acc": [0.0] * 200, "acc_norm": right},
      "humaneval": {"passed": right},
      "wikitext2": {"acc": [0.0] * 200, "nll": [1.0] * 200},
    }
    score["tasks"] = {
      f"task {name}": {"named": name, "columns": columns, "weights": None}
      for name, columns in named.items()
    }
    path.write_text(json.dumps(score))
  found = read(folder).cases
  assert {(case.task, case.kind) for case in found} == {
    ("task arc_challenge", "choice"),
    ("task humaneval", "generation"),
  }
  assert {case.retention.dense for case in found} == {1.0}
  assert {case.shifts["perplexity"] for case in found} == {0.0}
  chances = {case.kind: case.retention.chance for case in found}
  assert chances == {"choice": 0.25, "generation": 0.0}


def test_answers_have_a_length(tmp_path):
  """Twice the length is twice as many tokens that may be lost."""
  folder = write_model(tmp_path, "d", kind="exact")
  assert {case.tokens for case in read(folder).cases} == {100.0}
  path = folder / "configurations/dense.json"
  score = json.loads(path.read_text())
  score["tasks"]["asked"]["written"] = [[1, 2, 3]] * 199 + [[]]
  path.write_text(json.dumps(score))
  written = read(folder).cases[0]
  assert (written.kind, written.tokens) == ("generation", 3 * 199 / 200)
  score["tasks"]["asked"]["traits"] = {"answer_tokens": [6.0] * 200}
  path.write_text(json.dumps(score))
  assert read(folder).cases[0].tokens == 6
  one, two = (
    transfer.amount("tv per answer", {"tv": -1.0}, tokens)
    for tokens in (30, 60)
  )
  assert two - one == pytest.approx(math.log(2))
  assert transfer.amount("tv", {"tv": -1.0}, 60) == -1
  assert "tv per answer" in transfer.candidates("generation")
  assert transfer.candidates("choice") == tuple(shifts.SHIFTS)


def test_one_law_for_all_models_transfers(found, rule):
  entry = rule["kinds"]["choice"]
  assert entry["left_out"]["auc"]["value"] == 1
  assert entry["left_out"]["error"]["value"] == 0
  assert entry["trust"] > 0.9 and set(entry["by_model"]) == set("abc")
  sure = entry["left_out"]["sure"]
  assert sure["kept"]["wrong"] == sure["lost"]["wrong"] == 0
  assert sure["kept"]["said"] + sure["lost"]["said"] > 60
  # All configurations say 0.5 removed: sparsity states the share of the kept.
  blind = entry["baselines"]["sparsity"]
  assert blind["auc"]["value"] == 0.5
  assert blind["brier"] == pytest.approx(blind["coin"], abs=1e-3)
  assert entry["baselines"]["perplexity"]["auc"]["value"] == 1


def test_the_model_that_is_asked_about_is_not_seen(found):
  """Its labels may say anything: what is stated of it stays the same."""
  before, _ = transfer.leave_one_out(found.cases)
  turned = [
    case
    if case.model != "b"
    else _with_probability(case, 1 - case.retention.probability)
    for case in found.cases
  ]
  after, _ = transfer.leave_one_out(turned)
  asked = np.array([case.model == "b" for case in found.cases])
  np.testing.assert_array_equal(before[asked], after[asked])
  assert not np.allclose(before[~asked], after[~asked])


def _with_probability(case, probability):
  import dataclasses

  retention = dataclasses.replace(case.retention, probability=probability)
  return dataclasses.replace(case, retention=retention)


def test_models_that_differ_make_it_less_sure(tmp_path, found):
  """Limits that lie apart: between them the rule knows that it cannot tell."""
  apart = read(
    *(
      write_model(tmp_path / name, name, limit)
      for name, limit in (("a", 0.08), ("b", 0.15), ("c", 0.4))
    )
  )
  line, same = transfer.fit(apart.cases), transfer.fit(found.cases)
  assert line.trust * line.curve.slope < 0.5 * same.trust * same.curve.slope
  stated, _ = transfer.leave_one_out(apart.cases)
  checked = transfer.check(apart.cases, stated)
  assert 0.5 < checked["auc"]["value"] < 1
  assert checked["brier"] < checked["coin"]
  wrong = sum(each["wrong"] for each in checked["sure"].values())
  said = sum(each["said"] for each in checked["sure"].values())
  assert said < len(apart.cases) and wrong <= 0.25 * said


def test_luck_does_not_transfer(found):
  draw = np.random.default_rng(0)
  random = [
    _with_probability(case, float(draw.integers(2))) for case in found.cases
  ]
  checked = transfer.check(random, transfer.leave_one_out(random)[0])
  assert 0.25 < checked["auc_all"]["value"] < 0.75
  assert checked["brier"] > 0.2


def test_one_model_is_trusted_half_and_never_checked(folders):
  alone = read(folders[0])
  entry = transfer.learn(alone)["choice"]
  assert entry["left_out"] is None and entry["trust"] == transfer.ALONE
  assert entry["feature"] == transfer.FIRST_CHOICE["choice"]
  judged = shipped.judge(
    measurements(0.02, 0), rule=shipped.make_rule(alone, {"choice": entry}, 0.9)
  )
  assert "never checked" in judged["choice"].sentence


def test_a_kind_that_is_never_lost_has_no_rule(tmp_path):
  safe = read(write_model(tmp_path, "a", limit=9.0))
  rule = shipped.make_rule(safe, transfer.learn(safe), 0.9)
  judged = shipped.judge(measurements(0.5, 3), rule=rule)["choice"]
  assert judged.state == "unknown" and math.isnan(judged.probability)
  assert "too few pruned models lost it" in judged.sentence
  assert "no rule" in shipped_page.headline(rule)
  assert shipped_page.markdown(rule)


def test_judgements(rule):
  kept = shipped.judge(measurements(0.03, 0), rule=rule)["choice"]
  lost = shipped.judge(measurements(0.9, 18), rule=rule)["choice"]
  assert (kept.state, lost.state) == ("kept", "lost")
  assert kept.probability > 0.8 > 0.2 > lost.probability
  assert isinstance(kept.error, statistics.Estimate) and kept.error.value == 0
  assert kept.sentence.startswith("choice: kept (")
  assert "on models it had not seen, 0 of" in kept.sentence
  assert shipped.origin(rule).startswith(
    "The rule was learnt on 72 prunings of 3 models (a, b, c)"
  )


def test_more_change_is_never_more_likely_kept(rule):
  stated = [
    shipped.judge(measurements(damage, int(10 * damage)), rule=rule)["choice"]
    for damage in (0.01, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
  ]
  assert (np.diff([each.probability for each in stated]) <= 0).all()


def test_the_shipped_rule():
  rule = shipped.load_rule()
  assert set(rule["kinds"]) <= {"choice", "retrieval", "generation"}
  judged = shipped.judge(measurements(0.0, 0))
  assert {each.state for each in judged.values()} == {"kept"}
  assert {each.probability for each in judged.values()} == {1.0}
  ruin = shipped.judge(measurements(20.0, 20), {"answer_tokens": 200.0})
  assert all(each.state != "kept" for each in ruin.values())
  assert all(source["checkpoint_hash"] for source in rule["sources"])


def test_the_docs_show_the_shipped_rule():
  docs = pathlib.Path(__file__).parents[1] / "docs/rule.md"
  text = docs.read_text()
  begin, end = shipped_page.BEGIN, shipped_page.END
  shown = text.partition(begin)[2].partition(end)[0].strip()
  assert shown == shipped_page.markdown(shipped.load_rule())


def test_tables_are_replaced_between_their_marks(tmp_path, rule):
  path = tmp_path / "page.md"
  begin, end = shipped_page.BEGIN, shipped_page.END
  path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
  shipped_page.write_markdown(path, rule)
  text = path.read_text()
  assert text.startswith(f"before\n{begin}\n") and text.endswith("after\n")
  assert "old" not in text and "3 models (a, b, c)" in text
  path.write_text("no marks")
  with pytest.raises(ValueError, match="--docs=.*has no lines"):
    shipped_page.write_markdown(path, rule)


def test_a_rule_file_is_recognised(tmp_path, rule):
  path = tmp_path / "rule.json"
  with pytest.raises(ValueError, match="no such file"):
    shipped.load_rule(path)
  for text, words in (
    ("{", "not readable"),
    ("[]", "expected a JSON object"),
    ('{"made_by": "x"}', "not written by"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=f"rule.json: {words}"):
      shipped.load_rule(path)
  shipped.write_rule(path, rule)
  assert shipped.load_rule(path) == rule
