"""The benchmark on models so small that its times mean nothing."""

import contextlib
import json
import sys
import types

import numpy as np
import pytest
import torch

from jaxprune import checkpoints
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies import inputs
from jaxprune.studies.benchmark import (
  accelerator,
  cpu,
  evaluation,
  growth,
  methods,
  processes,
  pruning_references,
  rates,
  references,
  stages,
  tables,
  timing,
  transitions,
)


def test_sides_take_turns_and_the_first_call_is_apart():
  order = []

  def side(name, cost):
    def call():
      order.append(name)
      return np.array([cost + len(order), 0.0])

    return call

  seconds = timing.take_turns({"a": side("a", 10), "b": side("b", 20)}, 2)
  assert order == ["a", "b"] * 3
  np.testing.assert_array_equal(seconds["a"][:, timing.WALL], [11, 13, 15])
  np.testing.assert_array_equal(seconds["b"][:, timing.WALL], [22, 24, 26])


def test_time_is_charged_per_unit():
  wall, processor = timing.timed(lambda: sum(range(100_000)), units=1_000_000)
  assert 0 < wall < 1e-3 and 0 <= processor < 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_began_it():
  held = np.ones(1 << 26)  # 512 MiB, more than the process needs
  with processes.Side("small", str, None) as side:
    assert side.peak_bytes() < held.nbytes


def test_every_method_is_there_with_wanda_first():
  config = inputs.open_model("pocket").config
  names = [c.name for c in methods.read_configurations(config, 0.5, 64)]
  assert names[0] == "wanda:0.5" and len(set(names)) == len(names)
  assert {"flap:0.5", "sparsegpt:0.5", "awq:4"} <= set(names)
  with pytest.raises(ValueError, match="sparsity"):
    methods.read_configurations(config, 1.5, 64)


class Rows(list):
  """The part of a run folder that a suite writes to."""

  def write_all(self, rows):
    self.extend(rows)


@contextlib.contextmanager
def in_this_process(name, open_side, settings):
  """A side without a process of its own."""
  yield types.SimpleNamespace(name=name, ask=open_side(settings))


@pytest.fixture
def tiny(monkeypatch):
  """Models of size S are of two narrow layers."""
  small = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    vocab_size=64,
  )
  monkeypatch.setitem(references.SIZES, "S", small)
  monkeypatch.setitem(cpu.CALIBRATION, "S", (8, 40))


def test_suite_cpu(tiny):
  rows, lines = Rows(), []
  work = ("load", "decode_8", "wanda_2of4", "drop_scores")
  settings = cpu.Settings(
    size="S",
    model=None,
    work=work,
    repeats=2,
    threads=1,
    max_new_tokens=2,
    memory=False,
  )
  summary = cpu.measure(settings, rows, lines.append, in_this_process)
  assert [(row["task"], row["seed"], row["metric"]) for row in rows] == [
    (name, seed, metric)
    for name in work
    for seed in (0, 1)
    for metric in ("seconds", "processor_seconds")
  ]
  assert len(lines) == len(work)
  for name in work:
    entry = summary[name]
    assert entry["ratio"] == entry["reference_seconds"] / entry["seconds"] > 0
    assert entry["floor_seconds"] > 0
  decode = summary["decode_8"]
  assert decode["tokens_per_second"] == 16 / decode["seconds"]
  wanda = summary["wanda_2of4"]
  assert wanda["masks_seconds"] > 0 < wanda["reference_masks_seconds"]


@pytest.mark.parametrize(
  "method,pattern", [("wanda", NofM(keep=2, of=4)), ("sparsegpt", None)]
)
def test_both_sides_of_pruning_remove_the_same(tiny, tmp_path, method, pattern):
  references.start(1)
  model = references.random_model("S")
  model.save_pretrained(tmp_path / "dense")
  ids = references.random_ids(64, (8, 40), 0)
  weights.prune_weights(
    checkpoints.open_checkpoint(tmp_path / "dense"),
    tmp_path / "pruned",
    method=method,
    pattern=pattern or Unstructured(sparsity=0.5, group="matrix"),
    tokens=ids,
  )
  ours = references.read_model(tmp_path / "pruned").state_dict()
  prune = getattr(pruning_references, method)
  prune(model, torch.tensor(ids, dtype=torch.long), pattern and (2, 4))
  for name, theirs in model.state_dict().items():
    # Ties and near ties may fall either way.
    torch.testing.assert_close(
      (ours[name] == 0).float().mean(),
      (theirs == 0).float().mean(),
      atol=5e-3,
      rtol=0,
    )
    assert ((ours[name] == 0) == (theirs == 0)).float().mean() > 0.99, name
    both = (ours[name] != 0) & (theirs != 0)
    torch.testing.assert_close(
      ours[name][both], theirs[both], atol=1e-3, rtol=0.05
    )


def test_both_sides_score_sublayers_alike(tiny, tmp_path):
  references.start(1)
  model = references.random_model("S")
  model.save_pretrained(tmp_path / "dense")
  ids = references.random_ids(64, (8, 40), 0)
  ours = sublayers.score_sublayers(
    checkpoints.open_checkpoint(tmp_path / "dense"), ids
  )
  for target in ("attention", "mlp", "block"):
    theirs = pruning_references.drop_scores(
      model, torch.tensor(ids, dtype=torch.long), target
    )
    np.testing.assert_allclose(ours[target], theirs, atol=1e-4)


def test_suite_transitions(tiny):
  rows, lines = Rows(), []
  settings = transitions.Settings(
    size="S",
    model=None,
    max_new_tokens=2,
    prompt=4,
    batch=2,
    repeats=1,
    threads=1,
  )
  summary = transitions.measure(settings, rows, lines.append)
  assert [row["metric"] for row in rows] == [
    "seconds",
    "processor_seconds",
    "seconds_without_metrics",
  ]
  assert summary["ratio"] > 0 and len(lines) == 1


def test_suite_methods(two_layers):
  rows, lines = Rows(), []
  source = inputs.open_model(str(two_layers))
  wanted = methods.read_configurations(source.config, 0.5, 64)
  wanted = [c for c in wanted if c.method in ("wanda", "magnitude")]
  tokens = references.random_ids(source.config.vocab_size, (2, 16), 3)
  summary = methods.measure(source, wanted, tokens, rows, lines.append)
  assert list(summary) == ["wanda:0.5", "magnitude:0.5"]
  assert len(rows) == 4 and len(lines) == 2
  wanda = summary["wanda:0.5"]["layer_error"]
  assert 0 < wanda < summary["magnitude:0.5"]["layer_error"]
  assert {r["reference"] for r in rows if r["metric"] == "layer_error"} == {
    wanda
  }


def read_settings(data, **changes):
  return evaluation.Settings(
    **dict(
      model="unused",
      data=str(data),
      work=evaluation.WORK,
      limit=1,
      max_new_tokens=5,
      batch=1,
      reference_batch=1,
      repeats=1,
      threads=1,
    )
    | changes
  )


def test_requests_of_suite_evaluation(tmp_path):
  with pytest.raises(ValueError, match="no questions for choice"):
    evaluation.read_requests(read_settings(tmp_path))
  questions = tmp_path / "qa" / "ARC-Easy"
  questions.mkdir(parents=True)
  text = (
    "Please choose the correct answer to the question: Why?\n\n"
    "Answer1: So. Answer2: 2 cats\n\nAnswer format: answer1/answer2"
  )
  (questions / "test.json").write_text(json.dumps([{"instruction": text}] * 2))
  (tmp_path / "gsm8k").mkdir()
  (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "How many?"}')
  got = evaluation.read_requests(read_settings(tmp_path))
  context = "Question: Why?\nAnswer:"
  assert got["choice"] == [(context, " So."), (context, " 2 cats")]
  ((context, options),) = got["generation"]
  assert context == "Question: How many?\nAnswer:"
  assert options["max_gen_toks"] == 5 and not options["do_sample"]


def test_suite_gpu_on_a_small_shape(monkeypatch):
  monkeypatch.setattr(rates, "matmul_rate", lambda *shape: 1e9)
  monkeypatch.setattr(rates, "memory_rate", lambda: 1e9)
  rows, lines = Rows(), []
  settings = accelerator.Settings(
    shape="tiny",
    sequences=2,
    length=16,
    max_new_tokens=2,
    repeats=1,
    work=("wanda", "evaluation"),
  )
  summary = accelerator.measure(settings, rows, lines.append)
  for name in ("wanda", "wanda_2of4", "evaluation"):
    assert summary[name]["seconds"] > 0, name
  assert len(lines) == 4 and rows
  wanda = summary["wanda"]
  assert wanda["seconds"] == pytest.approx(
    sum(wanda[f"{stage}_seconds"] for stage in stages.STAGES)
  )
  assert "| wanda_2of4 |" in tables.of_accelerator(summary)


def test_suite_scaling(monkeypatch):
  assert growth.exponent([1, 2, 4], [9.0, 1.0, 8.0]) == pytest.approx(3)
  monkeypatch.setitem(growth.EXPECTED, "wanda", {"layers": (1, "alike")})
  rows, lines = Rows(), []
  settings = growth.Settings(work=("wanda",), doublings=1, repeats=1)
  summary = growth.measure(settings, rows, lines.append)
  assert summary["wanda"]["layers"]["values"] == [2, 4]
  assert len(rows) == 4 and len(lines) == 1
  assert "| wanda | layers | 2 | 4 |" in tables.of_growth(summary)
