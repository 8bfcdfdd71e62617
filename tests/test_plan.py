"""`plan`: the search on numbers by hand, and the whole on two layers."""

import json
import math
import shutil
import types

import fault_jobs
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints, report
from jaxprune.calibration.tokens import Calibration
from jaxprune.checkpoints import names
from jaxprune.pocket import shipped
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.studies.comparison import items, more_items
from jaxprune.studies.comparison.more_items import Scores
from jaxprune.studies.kept import Kept
from jaxprune.studies.plan import (
  candidates,
  measure,
  order,
  page,
  search,
  tries,
)
from jaxprune.studies.plan import summary as summary_lib
from jaxprune.studies.tasks.asked import Tasks


@pytest.mark.parametrize("right", range(-1, 10))
def test_bisection_finds_the_last_that_passes(right):
  asked = []

  def test(index):
    asked.append(index)
    return index <= right

  assert search.largest(test, 0, 9) == right
  assert len(asked) <= 4


def damages(count=10):
  """A ladder whose damage doubles from level to level."""
  return {i: 0.01 * 2.0**i for i in range(count)}


@pytest.mark.parametrize("slope", [0.2, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("first", [0, 4, 9])
def test_measurements_close_in_on_the_largest_that_keeps(slope, first):
  """Whatever the first guess, the answer is found in a few measurements."""
  ladder, keep = damages(), 0.9
  known, measured, level = {first: ladder[first]}, {}, first
  while level is not None:
    known[level] = ladder[level]
    measured[level] = search.kept(ladder[level], slope)
    level = search.next_level(10, known, measured, keep)
    assert level is None or level not in measured
  assert len(measured) <= 6
  found = max((i for i, part in measured.items() if part >= keep), default=-1)
  right = max(
    (i for i in ladder if search.kept(ladder[i], slope) >= keep), default=-1
  )
  assert found == right


def test_what_a_measurement_says_of_the_slope():
  assert math.isclose(search.refit(0.5, math.exp(-1), 7.0), 2.0)
  assert search.refit(0.0, 0.3, 7.0) == 7.0
  # A score at chance, or above the original's, says no more than its bound.
  assert search.refit(1.0, -0.2, 7.0) == search.refit(1.0, 0.05, 7.0)
  assert search.refit(1.0, 1.3, 7.0) == search.refit(1.0, 0.999, 7.0)
  assert math.isclose(search.kept(search.limit(0.9, 3.0), 3.0), 0.9)


def test_after_a_failure_the_corrected_slope_leads_at_once():
  # exp(-2 d) >= 0.9 up to d = 0.053: between levels 2 and 3, seen from 6.
  found = search.next_level(10, damages(), {6: math.exp(-1.28)}, 0.9)
  assert found == 2
  # All items right: four times the damage, 0.16, and no further.
  assert search.next_level(10, damages(), {2: 1.04}, 0.9) == 4
  # Both ends known: the middle between them.
  assert search.next_level(10, damages(), {6: 0.0, 0: 1.0}, 0.9) == 3
  assert search.next_level(10, damages(), {3: 0.0, 2: 1.0}, 0.9) is None
  assert search.next_level(10, damages(), {9: 1.0}, 0.9) is None
  # A pass above a failure is believed: scores of few items jump.
  assert search.next_level(10, damages(), {2: 0.0, 3: 1.0, 4: 0.0}, 0.9) is None


def test_the_cheapest_for_what_it_saves_leaves_first():
  """Losses by hand: 2 is cheap alone, and dear once 0 has left."""
  alone, savings = [1.0, 4.0, 1.5, 9.0], [1.0, 4.0, 1.0, 1.0]
  asked = []

  def loss(sets):
    asked.append(list(sets))
    return [
      sum(alone[i] for i in each) + (10.0 if {0, 2} <= set(each) else 0.0)
      for each in sets
    ]

  units = [(("mlp", i),) for i in range(4)]
  state = order.State()
  for _ in range(3):
    state = order.extend(state, units, savings, loss, width=2)
  assert state.chosen == (0, 1, 3)
  assert state.losses == (1.0, 5.0, 14.0)
  assert asked[0] == [(0,), (1,), (2,), (3,)]
  assert asked[1] == [(0, 1), (0, 2)]  # the two that looked cheapest
  assert asked[2] == [(0, 1, 2), (0, 1, 3)]
  with pytest.raises(ValueError, match="all 4 units"):
    order.extend(order.State(chosen=(0, 1, 2, 3)), units, savings, loss)


def test_amounts_of_sublayers():
  config = checkpoints.open_checkpoint(shipped.FOLDER).config
  layers = config.num_layers
  whole = Drops(
    num_layers=layers,
    order=tuple((k, i) for i in range(layers) for k in ("attention", "mlp")),
  )
  one = Drops(num_layers=layers, order=(("attention", 1),))
  for amount in candidates.AMOUNTS:
    assert candidates.fraction(config, amount, whole) == 1.0
  assert candidates.fraction(config, "kv_bytes", one) == 1 / layers
  assert candidates.fraction(config, "layers", one) == 0.0
  shapes = names.kernel_shapes(config)
  sizes = {path: math.prod(shape) for path, shape in shapes.items()}
  attention = sum(size for path, size in sizes.items() if path[0] != "mlp")
  assert math.isclose(
    candidates.fraction(config, "parameters", one),
    attention / layers / sum(sizes.values()),
  )


def test_labels_name_one_pruning_each():
  weights = candidates.of_weights("wanda", "kl")
  assert weights.label(6) == "wanda@kl:0.35" and weights.amounts[6] == 0.35
  pattern = candidates.of_weights("sparsegpt", group=4)
  assert [pattern.label(i) for i in range(3)] == [
    "sparsegpt:3:4",
    "sparsegpt:2:4",
    "sparsegpt:1:4",
  ]
  assert pattern.amounts == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
  "methods, allocations, patterns, said",
  [
    (["rtn"], ["kl"], ["n:4"], "--methods=rtn"),
    (["wanda"], ["even"], ["n:4"], "--allocations=even"),
    (["wanda"], ["kl"], ["2:4"], "--patterns=2:4"),
    ([], ["kl"], ["n:4"], "--methods: give"),
  ],
)
def test_ways_that_there_are_not(methods, allocations, patterns, said):
  with pytest.raises(ValueError, match=said):
    candidates.check_methods(methods, allocations, patterns)


def test_what_was_measured_is_measured_once(tmp_path):
  path = tmp_path / "plan.json"
  assert Kept(path).get("a", lambda: [1, 2]) == [1, 2]
  again = Kept(path)
  assert "a" in again and again.get("a", lambda: None) == [1, 2]
  costs = {unit: 0.5 for unit in range(12)}
  assert again.get("b", lambda: costs) == Kept(path).get("b", lambda: None)
  path.write_text(path.read_text().replace("  2\n", "  3\n"))
  with pytest.raises(ValueError, match="is not what was written"):
    Kept(path)


def made(label, damage, right=None):
  """A pruning of a family, as it was seen."""
  answers = {}
  if right is not None:
    answers = {"made": (np.arange(40) < right).astype(float).tolist()}
  family, _, amount = label.partition(":")
  return tries.Tried(
    label=label,
    family=family,
    amount=float(amount),
    damage=damage,
    kl=2 * damage,
    changed=damage,
    rule={},
    answers=answers,
  )


def test_what_was_seen_of_a_trained_model_needs_no_training(
  tmp_path, monkeypatch
):
  def prune(*_):
    raise RuntimeError("a model is pruned, to be trained")

  monkeypatch.setattr(tries.models, "folder_of", prune)
  kept, family = Kept(None), candidates.of_weights("wanda")
  dense = {"made": Scores(kind=fault_jobs.MADE, values=np.ones(4))}
  bench = tries.Bench(
    shop=types.SimpleNamespace(kept=kept, work=tmp_path / "none"),
    question=tries.Question(readings=[], more=None, dense=dense),
    settings=tries.Settings(uses=("generation",), keep=0.9, recover_steps=1),
    say=lambda line: None,
  )
  label = f"{family.label(5)} recovered"
  seen = {"damage": 0.1, "kl": 0.2, "changed": 0.3}
  kept.get(f"predicted/{label}", lambda: seen)
  with pytest.raises(RuntimeError, match="to be trained"):
    tries.recover(bench, family, 5)
  kept.get(f"answers/{label}", lambda: {"made": [1.0, 1.0, 1.0, 0.0]})
  tried = tries.recover(bench, family, 5)
  assert tried.recovered and tried.damage == 0.1
  assert tries.kept(bench.question, tried, 0.9).value == 0.75


@pytest.mark.parametrize("right", [24, None])
def test_the_page_says_what_was_found(tmp_path, right):
  """The original has 25 of 40 right; nothing found is said, too."""
  dense = {
    "made": Scores(kind=fault_jobs.MADE, values=(np.arange(40) < 25) * 1.0)
  }
  chosen = right and made("wanda@kl:0.3", 0.02, right)
  plan = measure.Plan(
    tried=[made("wanda:0.3", 0.1), made("wanda:0.6", math.inf, 3)]
    + ([chosen] if chosen else []),
    chosen=chosen,
    controls=[made("wanda:0.3", 0.1, 12)] if chosen else [],
    slope=2.0,
  )
  settings = tries.Settings(uses=("generation",), keep=0.9)
  numbers = summary_lib.summarise(
    plan,
    types.SimpleNamespace(
      source=types.SimpleNamespace(folder=tmp_path),
      amount="parameters",
      calibration=Calibration(tokens=np.zeros((2, 8), np.int32), source="self"),
    ),
    tries.Question(readings=[], more=None, dense=dense),
    settings,
  )
  description = report.describe_run(flags={}, command=["plan"], seeds={})
  out = tmp_path / "out"
  with report.RunFolder(out, description, extra_fields=tries.FIELDS) as run:
    run.write_all(measure.rows(plan))
    run.write_summary(numbers)
    page.write_page(run, numbers, settings)
  text = (out / "report.html").read_text()
  if chosen is None:
    assert "No pruning that was measured keeps 90 % of generate" in text
    assert "No model was written" in summary_lib.lead(numbers)
    return
  assert "30.0 % of the parameters of the layers can go" in text
  assert numbers["chosen"]["kept"]["value"] == 0.96
  assert "wanda:0.3 (usual)" in text and "keeps 0.48" in numbers["lead"]
  assert summary_lib.headline(numbers).count("\n") == 2


def test_the_time_that_is_said_counts_the_training():
  """Of 8 sequences of 256 tokens, 8 operations a token and weight."""
  shop = types.SimpleNamespace(
    dense=types.SimpleNamespace(params=[np.zeros(1000)]),
    tokens=np.broadcast_to(0, (2, 64)),
    training=types.SimpleNamespace(tokens=np.broadcast_to(0, (16, 256))),
    amount="parameters",
  )

  def minutes(steps):
    settings = tries.Settings(
      uses=("generation",), keep=0.9, recover_steps=steps
    )
    said = measure.describe(shop, settings)
    return int(said.rsplit("about ", 1)[1].split()[0])

  assert minutes(0) == 1
  assert minutes(10**8) == round(1000 * 10**8 * 8 * 256 * 8 / 1e11 / 60)


def test_a_task_that_no_item_stands_for(tmp_path):
  source = types.SimpleNamespace(
    folder=tmp_path, config=types.SimpleNamespace(vocab_size=7)
  )
  settings = tries.Settings(uses=("generation", "retrieval"), keep=0.9)
  with pytest.raises(ValueError, match="--task=retrieve: no built-in item"):
    tries.check(source, settings, None)
  more = more_items.More(own=Tasks(named=("cranfield:5",)))
  tries.check(source, settings, more)


@pytest.fixture
def asked(monkeypatch):
  """Answers that fall with the zeros of a model; returns who was asked."""
  names_asked = []
  breaks = {"wanda:0.35": "wanda:0.35"}  # once

  def ask_one(source, model, name, tell, uses):
    if name == breaks.pop(name, None):
      raise ValueError("out of memory")
    names_asked.append(name)
    return fault_jobs.answer(source, model, name, tell, uses)

  monkeypatch.setattr(items, "ask_one", ask_one)
  return names_asked


SMALL = (
  *("--num_samples=2", "--seq_len=32", "--limit=2", "--max_new_tokens=4"),
  *("--methods=wanda", "--allocations=uniform", "--keep=0.9"),
)


@pytest.mark.slow
def test_the_largest_amount_that_keeps_the_score(two_layers, tmp_path, asked):
  """At 35 % zeros more than 90 of 100 are right, at 40 % fewer."""
  out = tmp_path / "planned"
  command = ("plan", two_layers, f"--out={out}", *SMALL, "--controls")
  broken = scripts.call(*command)
  assert broken.returncode == 1 and "out of memory" in broken.stderr
  assert not out.exists()
  done = scripts.call(*command)
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  chosen = summary["chosen"]
  assert chosen["label"].startswith("wanda") and chosen["amount"] == 0.35
  measured = {
    e["amount"]: e["kept"]["value"] for e in summary["tried"] if e["kept"]
  }
  assert measured[0.4] < 0.9 <= measured[0.35] == chosen["kept"]["value"]
  assert "35.0 % of the parameters" in done.stdout.splitlines()[0]
  # Without --calibration the model has written what was looked at.
  described = json.loads((out / "run.json").read_text())["calibration"]
  assert described.items() <= summary["calibration"].items()
  assert (described["source"], described["length"]) == ("self", 32)
  source = checkpoints.open_checkpoint(out)
  _, params = checkpoints.load_params(source)
  up_LDF = np.asarray(params["layers"]["mlp"]["up"]["kernel"])
  assert abs((up_LDF == 0).mean() - 0.35) < 0.08
  assert {c["label"].partition(":")[0] for c in summary["controls"]} == {
    "wanda",
    "drops by similarity",
  }
  # Every answer that the page shows was asked once, in either run.
  assert "dense" in asked and len(asked) == len(set(asked))
  again = scripts.call(*command)
  assert "finished already" in again.stdout


@pytest.mark.slow
def test_attentions_for_bytes_of_the_cache(
  two_layers, tmp_path, asked, monkeypatch
):
  """A training that changes nothing is no worse, and so it is taken."""

  def recover(out, sources, recovery, text, *, states, report):
    # One step reads eight sequences that the pruning has not seen.
    assert (recovery.steps, recovery.batch) == (1, len(text.tokens)) == (1, 8)
    assert text.seed == 1
    shutil.copytree(sources["pruned"].folder, out)

  monkeypatch.setattr(tries.train, "recover", recover)
  out = tmp_path / "planned"
  done = scripts.call(
    *("plan", two_layers, f"--out={out}", *SMALL),
    *("--amount=kv_bytes", "--keep=0.5", "--recover=1"),
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  assert summary["chosen"]["amount"] == 0.5  # one of two layers
  assert summary["chosen"]["recovered"]
  drops = checkpoints.read_drops(checkpoints.open_checkpoint(out))
  assert len(drops["attention"]) == 1 and not drops["mlp"]


def test_a_model_that_has_nothing_to_lose(two_layers, tmp_path, monkeypatch):
  none = {"made": Scores(kind=fault_jobs.MADE, values=np.zeros(40))}
  monkeypatch.setattr(items, "ask_one", lambda *_: none)
  done = scripts.call("plan", two_layers, f"--out={tmp_path}/planned", *SMALL)
  assert done.returncode == 1
  assert "there is nothing to keep" in done.stderr
