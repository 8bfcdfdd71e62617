"""Folders that have lost sublayers: what they compute, and what may go next."""

import functools
import json
import shutil
from unittest import mock

import hf_models
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import strategies as st
from scripts import call

from jaxprune import checkpoints
from jaxprune.models import forward, unembed
from jaxprune.probes.decoder import ablation
from jaxprune.pruning import registry
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint import sublayers
from jaxprune.pruning.layerwise import drops
from jaxprune.studies import prune
from jaxprune.studies.ablation import measure, summary

L = 3
TOKENS = np.random.default_rng(0).integers(3, 60, (2, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
  """A folder with biases on every projection, as stock writes it."""
  folder = tmp_path_factory.mktemp("drops") / "dense"
  model, _, _ = hf_models.build(
    "llama", num_hidden_layers=L, attention_bias=True, mlp_bias=True
  )
  model.save_pretrained(folder)
  np.savez(folder / "ids.npz", calibration=TOKENS)
  return folder


def listed(dense, folder, **fields):
  """The same weights, with more in config.json."""
  shutil.copytree(dense, folder)
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  return folder


def stock(folder, attention=(), mlp=()):
  """Stock logits, without the output of some sublayers."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  with torch.no_grad():
    for index in attention:
      for tensor in model.model.layers[index].self_attn.o_proj.parameters():
        tensor.zero_()
    for index in mlp:
      for tensor in model.model.layers[index].mlp.down_proj.parameters():
        tensor.zero_()
    return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def logits(folder):
  config, params = checkpoints.load_params(folder, jnp.float32)
  return _logits(config, params)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params):
  return unembed(config, params, forward(config, params, TOKENS)[0])


# --- lists beside dense weights ---------------------------------------------


@pytest.mark.parametrize(
  "fields",
  [
    {"drop_attn_list": [2, 0], "drop_mlp_list": [1]},
    {
      "drop_attn_list": [True, False, True],
      "drop_mlp_list": [False, True, False],
      "auto_map": {"AutoModel": "code.Y"},
    },
  ],
  ids=["indices", "bools and code"],
)
def test_listed_sublayers_are_left_out(dense, tmp_path, fields, caplog):
  """Whatever weights the file holds; and the folder written again says so."""
  folder = listed(dense, tmp_path / "listed", **fields)
  with caplog.at_level("INFO"):
    source = checkpoints.open_checkpoint(folder)
  assert "runs without attention of layers 0, 2 (drop_attn_list); mlp of" in (
    caplog.text
  )
  without = stock(dense, attention=(0, 2), mlp=(1,))
  np.testing.assert_allclose(logits(source), without, atol=2e-5)
  layer = checkpoints.read_layer(source, 0)["attention"]["output"]
  assert not layer["kernel"].any() and not layer["bias"].any()
  out = checkpoints.save_params(
    tmp_path / "out", checkpoints.load_params(source)[1], source
  )
  hf = json.loads((out / "config.json").read_text())
  assert (hf["drop_attn_list"], hf["drop_mlp_list"]) == ([0, 2], [1])
  np.testing.assert_allclose(stock(out), without, atol=1e-6)
  written = checkpoints.open_checkpoint(out)
  whole = checkpoints.open_checkpoint(dense)
  assert checkpoints.checkpoint_hash(written) == (
    checkpoints.checkpoint_hash(source)
  )
  assert checkpoints.checkpoint_hash(whole) != (
    checkpoints.checkpoint_hash(source)
  )


@pytest.mark.parametrize(
  "value", [[3], [-1], [True, False], [True, 1, 0], ["0"], "0", 0, {}, False]
)
@pytest.mark.parametrize("key", ["drop_attn_list", "drop_mlp_list"])
def test_lists_that_name_no_layers_are_refused(dense, tmp_path, key, value):
  folder = listed(dense, tmp_path / "listed", **{key: value})
  with pytest.raises(ValueError, match=f"config.json: {key}=") as caught:
    checkpoints.open_checkpoint(folder)
  assert "\n" not in str(caught.value)


# --- choosing among what is left --------------------------------------------

PAIRS = st.tuples(st.sampled_from(["attention", "mlp"]), st.integers(0, L - 1))


def units(target):
  """What a step of a selection removes."""
  kinds = {"joint": ("attention", "mlp")}.get(target, (target,))
  if target == "block":
    return [(("attention", i), ("mlp", i)) for i in range(L)]
  return [((kind, i),) for kind in kinds for i in range(L)]


def fake_scores(earlier, lowest_first):
  """Random scores, but those of what is gone are the best there are."""
  draw = np.random.default_rng(0)
  scores = {kind: draw.random(L) for kind in ("attention", "mlp", "block")}
  scores = {kind: np.float32(0.1 + 0.8 * each) for kind, each in scores.items()}
  for kind, index in earlier:
    scores[kind][index] = 0.0 if lowest_first else 1.0
  return scores


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60)
@pytest.mark.parametrize("selection", drops.SELECTIONS)
def test_a_selection_takes_what_is_left(selection, data):
  target = "block"
  if selection != "consecutive":
    target = data.draw(st.sampled_from(drops.TARGETS))
  earlier = drops.Drops(
    num_layers=L, order=tuple(data.draw(st.lists(PAIRS, unique=True)))
  )
  left = [unit for unit in units(target) if not {*unit} & {*earlier.order}]
  lowest = data.draw(st.booleans()) and selection != "consecutive"
  count = data.draw(st.integers(0, 2 * L))

  def score(gates):
    gone = earlier.order
    if gates is not None:
      gone = [
        (k, i) for k in gates for i in np.flatnonzero(np.asarray(gates[k]) == 0)
      ]
    scores = fake_scores(gone, lowest)
    if selection == "consecutive":
      scores["window"] = np.linspace(1, 0, L - count + 1)
    return scores

  choose = lambda: drops.choose_drops(
    score,
    L,
    count,
    target=target,
    selection=selection,
    lowest_first=lowest,
    earlier=earlier,
  )[0]
  whole = {i for unit in left for _, i in unit[:1]}
  windows = [i for i in range(L) if whole >= set(range(i, i + count))]
  if count > len(left) or (selection == "consecutive" and not windows):
    with pytest.raises(ValueError, match=f"drop count is {count}"):
      choose()
    return
  chosen = choose().order
  width = 2 if target == "block" else 1
  taken = [chosen[i : i + width] for i in range(0, len(chosen), width)]
  assert len(taken) == count and set(taken) <= set(left)
  if selection == "consecutive":
    assert [unit[0][1] for unit in taken] == list(
      range(windows[0], windows[0] + count)
    )
  elif selection != "random":
    scores = fake_scores((), lowest)
    name = {"joint": None}.get(target, target)
    values = [scores[name or unit[0][0]][unit[0][1]] for unit in left]
    best_first = lowest == (selection == "reverse")
    order = np.argsort(-np.array(values) if best_first else values)
    assert taken == [left[i] for i in order[:count]]


@pytest.mark.parametrize("method", registry.names(registry.SUBLAYERS))
def test_every_method_leaves_what_is_gone(dense, tmp_path, method, monkeypatch):
  """The only best score is that of what is gone; a third drop is too many."""
  folder = listed(
    dense, tmp_path / "listed", drop_attn_list=[1], drop_mlp_list=[1]
  )
  source = checkpoints.open_checkpoint(folder)
  earlier = sublayers.dropped_before(source)
  assert set(earlier.order) == {("attention", 1), ("mlp", 1)}

  def score_sublayers(*args, window=0, **options):
    scores = fake_scores([*earlier.order, ("block", 1)], False)
    return scores | {"window": np.float32([0.3, 0.9, 0.2])}

  lowest = fake_scores([*earlier.order, ("block", 1)], True)
  monkeypatch.setattr(sublayers, "score_sublayers", score_sublayers)
  monkeypatch.setattr(ablation, "kl_score", lambda *a, **k: lambda g: lowest)
  change = Change(method=method, drop_count=1, target="attention")
  chosen, _ = prune.choose_drops(source, change, TOKENS)
  assert chosen.order and all(index != 1 for _, index in chosen.order)
  most = 2 * (2 if change.drop_target == "joint" else 1)
  change = Change(method=method, drop_count=most + 1, target="attention")
  with pytest.raises(ValueError, match="drop count is"):
    prune.check(source.config, change, tokens=True, earlier=earlier)


def test_the_script_drops_what_is_left(dense, tmp_path):
  """Without one attention, and then without another."""
  folder = listed(dense, tmp_path / "listed", drop_attn_list=[1])
  tokens = f"--calibration={dense}/ids.npz"
  flags = [f"--model={folder}", tokens, "--method=drop_attention"]
  too_many = call(
    "prune", *flags, "--drop_count=3", f"--out={tmp_path}/refused"
  )
  assert too_many.returncode == 1
  assert "3, but attention has 2 to drop left of 3" in too_many.stderr
  assert not (tmp_path / "refused").exists()
  done = call("prune", *flags, "--drop_count=1", f"--out={tmp_path}/out")
  assert done.returncode == 0, done.stderr
  first, *rest = json.loads((tmp_path / "out/summary.json").read_text())[
    "dropped"
  ]
  assert first in (["attention", 0], ["attention", 2]) and not rest
  gone = sorted({1, first[1]})
  out = checkpoints.open_checkpoint(tmp_path / "out")
  assert checkpoints.read_drops(out)["attention"] == tuple(gone)
  rows = (tmp_path / "out/records.jsonl").read_text().splitlines()
  kept = [json.loads(row)["attention_kept"] for row in rows]
  assert kept == [index not in gone for index in range(L)]
  np.testing.assert_allclose(
    stock(tmp_path / "out"), stock(dense, attention=gone), atol=1e-6
  )


def test_the_ablation_study_orders_what_is_left(dense, tmp_path, monkeypatch):
  """Measurements are made up; those of what is gone are the best."""
  source = checkpoints.open_checkpoint(
    listed(dense, tmp_path / "listed", drop_attn_list=[1])
  )
  gone = [("attention", 1), ("block", 1)]

  def losses(*args, kinds=ablation.KINDS, **options):
    scores = fake_scores(gone, True)
    each = {kind: np.outer(scores[kind], [1.0, 1.1]) for kind in kinds}
    return {kind: {"kl": x, "kl_estimate": 2 * x} for kind, x in each.items()}

  monkeypatch.setattr(ablation, "ablate_sublayers", losses)
  monkeypatch.setattr(
    ablation,
    "predict_sublayers",
    lambda *a, **k: {name: x["kl"] for name, x in losses().items()},
  )
  monkeypatch.setattr(
    ablation,
    "ablate_gates",
    lambda c, p, tokens, gates, **k: {"kl": np.ones((len(gates.mlp), 2))},
  )
  monkeypatch.setattr(
    sublayers, "score_sublayers", lambda *a, **k: fake_scores(gone, False)
  )
  # Intervals of the others would only take time.
  monkeypatch.setattr(summary, "_RANKED", {"attention": ("attention",)})
  settings = measure.Settings(targets=("attention", "block"), max_count=2)
  run, rows = mock.Mock(), []
  run.write_all = rows.extend
  found = summary.summarise(
    measure.measure(source, TOKENS, TOKENS, settings, run, mock.Mock()),
    settings,
  )
  for target in settings.targets:
    for selection, orders in found["orders"][target].items():
      assert {layer for order in orders for _, layer in order} == {0, 2}, (
        selection
      )
  left = {
    *(("attention", i) for i in (0, 2)),
    *(("mlp", i) for i in range(L)),
    *(("block", i) for i in (0, 2)),
  }
  singles = [row for row in rows if row["protocol"] == "single"]
  assert {(row["sublayer"], row["layer"]) for row in found["single"]} == left
  assert {(row["sublayer"], row["layer"]) for row in singles} == left
  agreement = found["rank_correlation"]["attention"]["kl_estimate"]
  assert agreement["value"] == pytest.approx(1)
  with pytest.raises(ValueError, match="2 to drop left of 3"):
    measure.check(
      source.config,
      measure.Settings(targets=("attention",), max_count=3),
      sublayers.dropped_before(source),
    )
