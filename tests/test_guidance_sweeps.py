"""Learning from sweeps: what is read, what is held out, what is advised."""

import json

import numpy as np
import pytest

from jaxprune.studies.guidance import (
  apply,
  check,
  fit,
  recommend,
  splits,
  summary,
)
from jaxprune.studies.guidance import rules as rules_lib
from jaxprune.studies.guidance import sweeps as sweeps_lib
from tests.guidance_sweeps_made import (
  measurements,
  write_configuration,
  write_sweep,
)

SETTINGS = fit.Settings(resamples=200, shuffles=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def sweeps(folder):
  return sweeps_lib.read_sweeps([folder], keep=0.9, resamples=100)


@pytest.fixture(scope="module")
def rules(sweeps):
  return fit.fit(sweeps, SETTINGS)


def test_columns(sweeps):
  assert len(sweeps.models) == 4 * 3 * 2 + 2 * 3 and not sweeps.left_out
  assert {name: task.metric for name, task in sweeps.tasks.items()} == {
    "choose": "acc",
    "text": "nll",
    "easy": "ndcg@10",
  }
  place = next(
    i
    for i, model in enumerate(sweeps.models)
    if (model.configuration, model.seed) == ("wanda:2:4", 1)
  )
  damage = 0.5 + 0.01 + 0.002
  assert sweeps.models[place].method == "wanda"
  assert sweeps.models[place].kind == "weights"
  assert sweeps.features["max_kl"][place] == pytest.approx(damage)
  assert sweeps.tasks["choose"].kept[place] == 0.5
  # exp(1 + damage) over exp(1).
  assert sweeps.perplexity["text"][place] == pytest.approx(np.exp(damage))


def test_a_sweep_under_its_earlier_names_is_read(tmp_path, sweeps):
  folder = write_sweep(tmp_path)
  for path in (folder / "configurations").glob("*.json"):
    score = json.loads(path.read_text())
    if "configuration" in score:
      score["cell"] = score.pop("configuration")
      path.write_text(json.dumps(score))
  (folder / "configurations").rename(folder / "cells")
  earlier = sweeps_lib.read_sweeps([folder], keep=0.9, resamples=100)
  assert earlier.models == sweeps.models
  assert earlier.fingerprints == sweeps.fingerprints


def test_a_data_free_model_counts_once(tmp_path, folder):
  write_configuration(tmp_path, "dense", "dense", 0, 0.0, 20)
  (tmp_path / "configurations/job.json").write_text(
    '{"checkpoint_hash": "aaaa"}'
  )
  for name in ("rtn:4", "awq:4"):
    write_configuration(tmp_path, f"{name[:3]}-seed7", name, 7, 0.1, 20)
  both = sweeps_lib.read_sweeps([folder, tmp_path], keep=0.9, resamples=100)
  # rtn:4 with another seed is the same model.
  assert [model.configuration for model in both.models[30:]] == ["awq:4"]
  assert both.models[-1].seed == 7


def test_duplicates_are_on_one_side_only(tmp_path, folder, sweeps):
  assert len(splits.without_duplicates(sweeps).models) == 30
  write_sweep(tmp_path)
  # Another name for magnitude:0.2, whose damage is 0.05.
  write_configuration(tmp_path, "zz", "drop_block:1", 5, 0.05, 20)
  every = sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)
  found = splits.without_duplicates(every)
  assert len(every.models) == 31 and len(found.models) == 30
  assert "drop_block:1 seed 5: the same model" in found.left_out[0]
  for name, task in found.tasks.items():
    assert task.models.tolist() == list(range(30)) and len(task.items) == 30
    np.testing.assert_array_equal(task.kept, every.tasks[name].kept[:30])
  # All are known: nothing is left to be checked.
  none = splits.without_duplicates(sweeps, sweeps.fingerprints)
  assert not none.models and not none.tasks


def test_fewer_prompts(folder, sweeps):
  few = sweeps_lib.read_sweeps([folder], keep=0.9, num_prompts=1, resamples=100)
  assert few.sources[0]["positions"] == 5
  assert sweeps.sources[0]["num_prompts"] == 4
  # Flips are at the first positions: all of them are in the first prompt.
  flips = np.round(20 * sweeps.features["flip_rate"])
  np.testing.assert_allclose(
    few.features["flip_rate"], np.minimum(flips, 5) / 5
  )


def test_nothing_is_on_both_sides(sweeps):
  every = {split.name: split for split in splits.splits(sweeps)}
  assert list(every) == [
    "half",
    "swapped",
    "leave one method out",
    "leave one kind out",
  ]
  runs = np.array([model.seed for model in sweeps.models])
  for name in ("half", "swapped"):
    ((learn, ask),) = every[name].folds
    assert not set(sweeps.methods[learn]) & set(sweeps.methods[ask])
    # One run only, whatever the seed.
    free = np.isin(sweeps.methods, ["magnitude", "rtn"])
    assert set(runs[learn & ~free]) == {0} and set(runs[ask & ~free]) == {1}
  (learn, ask), (other, asked) = (
    every[name].folds[0] for name in ("half", "swapped")
  )
  assert set(sweeps.methods[learn]) == set(sweeps.methods[asked])
  assert set(sweeps.methods[ask]) == set(sweeps.methods[other])
  # Both halves have single weights and drops.
  assert set(sweeps.methods[learn]) == {
    "magnitude",
    "sparsegpt",
    "drop_attention",
  }
  for name in ("leave one method out", "leave one kind out"):
    asked = np.sum([ask for _, ask in every[name].folds], axis=0)
    assert (asked == 1).all()
    assert not any((learn & ask).any() for learn, ask in every[name].folds)


def test_a_second_dense_model_is_held_out(tmp_path, folder):
  other = write_sweep(tmp_path / "b", dense="bbbb", shift=0.001)
  both = sweeps_lib.read_sweeps([folder, other], keep=0.9, resamples=100)
  every = {split.name: split for split in splits.splits(both)}
  dense = np.array([model.dense for model in both.models])
  ((learn, ask),) = every["half"].folds
  assert set(dense[learn]) == {"aaaa"} and set(dense[ask]) == {"bbbb"}
  folds = every["leave one dense model out"].folds
  assert [set(dense[ask]) for _, ask in folds] == [{"aaaa"}, {"bbbb"}]
  found = fit.fit(both, fit.Settings(resamples=100, shuffles=2))
  assert (
    found["choose"]["splits"]["leave one dense model out"]["rule"]["error"] == 0
  )


def test_a_clean_grid_is_learnt(rules):
  """`choose` dies at damage 0.3: every feature that follows it foretells it."""
  entry = rules["choose"]
  assert entry["feature"] in rules_lib.FEATURES
  assert (entry["survived"], entry["models"]) == (20, 30)
  assert entry["balanced_error"] == 0 and entry["learnt_from"] == 9
  # Three methods with three amounts of the other seed, and rtn.
  held = entry["held_out"]
  assert (held["error"], held["models"], held["groups"]) == (0, 9, 3)
  assert (1 - held["high"]) ** 3 == pytest.approx(0.025)
  for split in entry["splits"].values():
    assert split["rule"]["error"] == 0
  # All configurations say 0.5 removed, so sparsity cannot tell and falls back.
  baselines = entry["splits"]["half"]["baselines"]
  assert (
    baselines["removed"]["error"] == baselines["majority"]["error"] == 1 / 3
  )
  assert baselines["removed"]["rule_less_this"]["value"] == pytest.approx(
    -1 / 3
  )
  assert baselines["perplexity"]["error"] == 0
  assert entry["shuffled"]["true"] == 0
  assert entry["shuffled"]["mean"] > 0.1


def test_one_feature_is_not_chosen(sweeps):
  only = fit.Settings(features=("p90_kl",), resamples=100, shuffles=5)
  entry = fit.fit(sweeps, only)["choose"]
  assert (entry["feature"], entry["tried"]) == ("p90_kl", 1)
  # Damages 0.2 + 0.04 and 0.5 of sparsegpt, magnitude and drop_attention.
  assert entry["gap"] == pytest.approx([0.24, 0.5])


def test_own_perplexity_is_no_baseline(rules):
  assert "perplexity" not in rules["text"]["splits"]["half"]["baselines"]
  assert "perplexity" in rules["choose"]["splits"]["half"]["baselines"]


def test_a_task_that_always_survives_teaches_nothing(rules):
  entry = rules["easy"]
  assert entry["feature"] is None and entry["held_out"] is None
  assert entry["reason"].startswith("every pruned model")
  assert entry["range"]["max_kl"] == pytest.approx([0.05, 0.55 + 0.002])


def test_luck_does_not_transfer(tmp_path):
  """Labels that have nothing to do with damage: held out, half are wrong."""
  draw = np.random.default_rng(0)
  write_configuration(tmp_path, "dense", "dense", 0, 0.0, 20)
  (tmp_path / "configurations/job.json").write_text('{"checkpoint_hash": "a"}')
  for method in ("magnitude", "wanda", "sparsegpt", "ria", "drop_mlp", "awq"):
    for level in range(20):
      write_configuration(
        tmp_path,
        f"{method}{level}",
        f"{method}:{level + 2}",
        0,
        draw.uniform(),
        20 if draw.uniform() < 0.5 else 10,
      )
  sweeps = sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)
  entry = fit.fit(sweeps, SETTINGS)["choose"]
  assert entry["balanced_error"] < 0.5
  assert 0.3 < entry["splits"]["leave one method out"]["rule"]["error"] < 0.7
  assert entry["shuffled"]["as_good"] > 0.05


def test_strength():
  order = lambda *names: sorted(names, key=recommend.strength)  # noqa: E731
  assert order("awq:3", "awq:8", "awq:4") == ["awq:8", "awq:4", "awq:3"]
  assert order("wanda:0.7", "wanda:0.5") == ["wanda:0.5", "wanda:0.7"]
  assert order("wanda:2:4", "wanda:1:4", "wanda:4:8") == [
    "wanda:4:8",
    "wanda:2:4",
    "wanda:1:4",
  ]
  assert order("drop_mlp:10", "drop_mlp:9") == ["drop_mlp:9", "drop_mlp:10"]
  assert recommend.family("wanda:2:4") == "wanda n:m"


def test_advice(sweeps):
  found = {
    (entry["task"], entry["family"]): entry
    for entry in recommend.recommend(sweeps)
  }
  rtn = found["choose", "rtn"]
  assert (rtn["configuration"], rtn["next"]["configuration"]) == (
    "rtn:4",
    "rtn:3",
  )
  assert (rtn["evidence"]["value"], rtn["next"]["value"]) == (1, 0.5)
  assert (rtn["evidence"]["runs"], rtn["evidence"]["survived"]) == (1, 1)
  assert found["choose", "drop_mlp"]["evidence"]["runs"] == 2
  assert found["choose", "wanda n:m"]["configuration"] is None
  assert found["choose", "wanda"]["next"] is None
  assert found["easy", "drop_mlp"]["configuration"] == "drop_mlp:4"
  # exp(1.05) keeps 0.95 of exp(1); exp(1.2) does not keep 0.9.
  text = found["text", "magnitude"]
  assert text["configuration"] == "magnitude:0.2"
  assert text["evidence"]["value"] == pytest.approx(np.exp(1.05))
  assert text["evidence"]["dense"] == pytest.approx(np.e)


def test_all_runs_must_survive(tmp_path, folder):
  """One seed that fails is enough, and ends what is recommended."""
  write_sweep(tmp_path)
  write_configuration(tmp_path, "wanda_0.2-seed1", "wanda:0.2", 1, 0.05, 17)
  sweeps = sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)
  found = {
    entry["family"]: entry
    for entry in recommend.recommend(sweeps)
    if entry["task"] == "choose"
  }
  assert found["wanda"]["configuration"] is None
  assert found["wanda"]["next"]["configuration"] == "wanda:0.2"
  assert found["wanda"]["beyond"] == "wanda:0.5"
  assert found["rtn"]["beyond"] is None
  write_configuration(tmp_path, "wanda_0.5-seed1", "wanda:0.5", 1, 0.2, 17)
  sweeps = sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)
  found = {
    entry["family"]: entry
    for entry in recommend.recommend(sweeps)
    if entry["task"] == "choose"
  }
  assert (
    found["wanda"]["configuration"] is None and found["wanda"]["beyond"] is None
  )
  assert found["wanda"]["next"]["survived"] == 1


def test_what_cannot_be_used(tmp_path, folder):
  with pytest.raises(ValueError, match="no finished dense model"):
    sweeps_lib.read_sweeps([tmp_path], keep=0.9)
  with pytest.raises(ValueError, match="in an earlier sweep too"):
    sweeps_lib.read_sweeps([folder, folder], keep=0.9, resamples=100)
  write_sweep(tmp_path)
  path = tmp_path / "configurations/rtn_3-seed0.json"
  score = json.loads(path.read_text())
  score["measurements"]["kl"][0] = None
  path.write_text(json.dumps(score))
  sweeps = sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)
  assert len(sweeps.models) == 29
  assert "rtn:3 seed 0: measurements: kl is not finite" in sweeps.left_out[0]
  for path in (tmp_path / "configurations").glob("*-seed*.json"):
    path.write_text(
      json.dumps(json.loads(path.read_text()) | {"measurements": {}})
    )
  with pytest.raises(ValueError, match="discrepancy with --prompts"):
    sweeps_lib.read_sweeps([tmp_path], keep=0.9, resamples=100)


def test_the_rule_says_where_it_is_untested(sweeps, rules):
  rule = {"sources": sweeps.sources, "tasks": rules}
  assert sweeps.sources[0]["steps"] == 5
  assert sweeps.sources[0]["positions"] == 20
  known = apply.judge(rule, "aaaa", None, 5, measurements(0.02, 0))
  assert known["tested"] and not known["doubts"]
  assert [answer["answer"] for answer in known["answers"]] == [
    "yes",
    "yes",
    "unknown",
  ]
  bad = apply.judge(rule, "aaaa", None, 5, measurements(0.9, 9))
  assert [answer["answer"] for answer in bad["answers"]] == [
    "no",
    "no",
    "unknown",
  ]
  other = apply.judge(rule, "cccc", "x", 4, measurements(0.02, 0))
  assert not other["tested"] and len(other["doubts"]) == 3
  said = apply.headline(other).splitlines()
  assert said[0].startswith("warning: UNTESTED")
  assert said[3].startswith("untested: choose: yes")


def test_a_rule_is_checked_on_another_grid(tmp_path, rules):
  """Labels turned round: every answer of a rule without errors is wrong."""
  other = write_sweep(tmp_path, dense="bbbb")
  rule = {"sources": [{"checkpoint_hash": "aaaa"}], "tasks": rules}
  sweeps = sweeps_lib.read_sweeps([other], keep=0.9, resamples=100)
  found = check.summarise(rule, sweeps, resamples=100)
  assert not found["same_dense_model"] and found["no_rule"] == ["easy"]
  assert (
    found["tasks"]["choose"]["error"],
    found["tasks"]["text"]["error"],
  ) == (0, 0)
  for path in other.glob("configurations/*-seed*.json"):
    score = json.loads(path.read_text())
    right = sum(score["tasks"]["choose"]["columns"]["acc"])
    score["tasks"]["choose"]["columns"]["acc"] = (
      [1.0] * 20 if right < 20 else [0.0] * 20
    )
    path.write_text(json.dumps(score))
  sweeps = sweeps_lib.read_sweeps([other], keep=0.9, resamples=100)
  turned = check.summarise(rule, sweeps, resamples=100)["tasks"]
  assert (turned["choose"]["error"], turned["text"]["error"]) == (1, 0)
  # What died survives now, and the rule says no; and the reverse.
  assert (turned["choose"]["false_no"], turned["choose"]["false_yes"]) == (
    10,
    20,
  )
  assert len(list(check.rows(rule, sweeps))) == 2 * 30
  with pytest.raises(ValueError, match="no task has a rule"):
    check.summarise({"sources": [], "tasks": {"easy": rules["easy"]}}, sweeps)


def test_a_rule_file_is_recognised(tmp_path):
  path = tmp_path / "rule.json"
  with pytest.raises(ValueError, match="no such file"):
    apply.read_rule(path)
  made = f'{{"made_by": "{apply.MADE_BY}", "sha256": "x"}}'
  for text in ("{", "[]", '{"made_by": "x"}', made, made.replace("sha", "")):
    path.write_text(text)
    with pytest.raises(ValueError, match="--rule="):
      apply.read_rule(path)


def test_lines(sweeps, rules):
  lines = [summary.describe_rule(*item) for item in rules.items()]
  assert lines[0].startswith("choose: 20 of 30 survived; use a model while")
  assert "held-out error 0 % [0, 71]" in lines[0]
  assert "no threshold" in lines[2]
  advice = summary.setting_lines(recommend.recommend(sweeps))
  assert "rtn:4" in advice[0] and "no wanda n:m" in advice[0]
  assert summary.in_words("p90_kl") == "90th percentile of the KL"
  assert all(map(summary.in_words, rules_lib.FEATURES))


def test_the_answer_comes_first_and_in_words(sweeps, rules):
  numbers = summary.summarise(sweeps, rules, SETTINGS, [])
  first = summary.headline(numbers).splitlines()[0]
  assert first == (
    "Of 30 pruned models, 20 still do choose, 10 still do text and 30 still do"
    " easy (at least 90 % of the dense score). Lost first is text. On models"
    " that were not learnt from the rules are wrong for 0 % [0, 71] (choose),"
    " 0 % [0, 71] (text)."
  )
  assert summary.verdict(numbers).startswith(first)


def test_a_choice_is_corrected_for_chance(tmp_path):
  """15 of 20 with a chance of one half: half of what could be lost is left."""
  folder = write_sweep(tmp_path)
  for path in (folder / "configurations").glob("*.json"):
    score = json.loads(path.read_text())
    if "tasks" in score:
      score["tasks"]["choose"]["chance"] = 0.5
      score["tasks"]["easy"]["chance"] = [0.9, 1.0, 1.0]
      path.write_text(json.dumps(score))
  write_configuration(tmp_path, "awq-seed0", "awq:4", 0, 0.1, 15)
  found = sweeps_lib.read_sweeps([folder], keep=0.9, resamples=100)
  kept = dict(
    zip((m.configuration for m in found.models), found.tasks["choose"].kept)
  )
  assert kept["awq:4"] == pytest.approx(0.5)
  # A dense model that is no better than a guess has nothing to lose.
  assert list(found.tasks) == ["choose", "text"]
  assert [line for line in found.left_out if "near chance" in line] == [
    "easy: unknown, because the dense model aaaa may be near chance: it has"
    " nothing to lose"
  ]
