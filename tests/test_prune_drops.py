"""Whole sublayers leave a checkpoint."""

import json

import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.models import make_gates
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.layerwise import drops
from tests.test_prune_weights import TOKENS, logits, tiny, torch_logits

__all__ = ["tiny"]  # Fixtures, not leftover imports.


def choose(source, count, target, selection="ranked"):
  """The choice by similarity."""
  window = count if selection == "consecutive" else 0
  return drops.choose_drops(
    lambda gates: sublayers.score_sublayers(
      source, TOKENS, gates=gates, window=window
    ),
    source.config.num_layers,
    count,
    target=target,
    selection=selection,
  )


@pytest.mark.parametrize(
  "target,selection",
  [
    ("attention", "ranked"),
    ("mlp", "reverse"),
    ("joint", "iterative"),
    ("block", "consecutive"),
    ("block", "random"),
  ],
)
def test_drops_are_gates(tiny, tmp_path, target, selection):
  chosen, scores = choose(tiny, 2, target, selection)
  sublayers.prune_drops(tiny, tmp_path / "out", chosen, scores)
  gates = make_gates(
    tiny.config, attention=chosen.layers("attention"), mlp=chosen.layers("mlp")
  )
  pruned = logits(tmp_path / "out", TOKENS)
  np.testing.assert_allclose(pruned, logits(tiny, TOKENS, gates), atol=1e-6)
  found = checkpoints.read_drops(checkpoints.open_checkpoint(tmp_path / "out"))
  for kind in ("attention", "mlp"):
    assert found[kind] == tuple(sorted(chosen.layers(kind)))


def test_slim_drops_leave_out_what_is_dead(tiny, tmp_path):
  """A block dropped, and half a layer: one layer less, the same function."""
  order = (("attention", 0), ("mlp", 0), ("mlp", 2))
  chosen = drops.Drops(num_layers=3, order=order)
  folders = {}
  for slim in (False, True):
    folders[slim] = tmp_path / str(slim)
    sublayers.prune_drops(
      tiny, folders[slim], chosen, {}, output=weights.Output(slim=slim)
    )
  config = json.loads((folders[True] / "config.json").read_text())
  assert config["num_hidden_layers"] == 2
  assert config["drop_mlp_list"] == [1] and "drop_attn_list" not in config
  assert config["jaxprune"]["left_out"] == [0]
  whole, slim = (
    sum(path.stat().st_size for path in folders[key].glob("*.safetensors"))
    for key in (False, True)
  )
  assert slim < 0.8 * whole
  expected = logits(folders[False], TOKENS)
  np.testing.assert_allclose(logits(folders[True], TOKENS), expected, atol=1e-5)
  np.testing.assert_allclose(
    torch_logits(folders[True], TOKENS), expected, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  "target,selection",
  [("attention", "ranked"), ("joint", "iterative"), ("block", "consecutive")],
)
def test_dropping_nothing(tiny, target, selection):
  chosen, scores = choose(tiny, 0, target, selection)
  assert chosen.order == ()
  assert all(leaf.shape == (3,) for leaf in scores.values())


@pytest.mark.slow
def test_dropped_model_in_transformers(tiny, tmp_path):
  chosen, scores = choose(tiny, 2, "joint")
  sublayers.prune_drops(tiny, tmp_path / "out", chosen, scores)
  np.testing.assert_allclose(
    logits(tmp_path / "out", TOKENS),
    torch_logits(tmp_path / "out", TOKENS),
    atol=1e-5,
  )


@pytest.mark.slow
def test_official_similarities(shared):
  golden = shared / "golden" / "qwen2_random"
  dense = checkpoints.open_checkpoint(golden / "dense")
  tokens = np.load(golden / "tokens.npz")["calibration"]
  theirs = json.loads((golden / "similarities.json").read_text())
  windows = (1, 2, dense.config.num_layers)
  by_window = {
    window: sublayers.score_sublayers(dense, tokens, window=window)
    for window in windows
  }
  ours = by_window[windows[0]]
  bare = sublayers.score_sublayers(dense, tokens, residual=False)
  for name, found in {
    "attn_residual": ours["attention"],
    "mlp_residual": ours["mlp"],
    "attn_no_residual": bare["attention"],
    "mlp_no_residual": bare["mlp"],
    "block": ours["block"],
  }.items():
    np.testing.assert_allclose(found, theirs[name], atol=1e-5)
  for window, found in by_window.items():
    column = [row[window - 1] for row in theirs["consecutive"]]
    np.testing.assert_allclose(
      found["window"], [c for c in column if c is not None], atol=1e-5
    )
