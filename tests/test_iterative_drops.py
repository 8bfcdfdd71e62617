"""Sublayers dropped one by one, on a made-up model and on the decoder."""

import functools

import jax
import numpy as np
import pytest

from jaxprune.models.decoder import Gates, forward
from jaxprune.pruning.layerwise import drops, similarities
from tests.test_drops import SCORES, cosine, golden

L, WIDTH = 4, 6


def toy_sublayers(seed):
  """Functions of the residual stream: [(kind, layer, function)]."""
  rng = np.random.default_rng(seed)

  def sublayer():
    a = rng.normal(size=(WIDTH, WIDTH)) * rng.uniform(0.1, 1.5)
    return lambda x: np.tanh(x @ a)

  return [
    (kind, i, sublayer()) for i in range(L) for kind in ("attention", "mlp")
  ]


def toy_scores(sublayers, x, dead_blocks=()):
  """Similarity of each sublayer in the list, the only ones that run."""
  scores = {kind: np.zeros(L, np.float32) for kind in ("attention", "mlp")}
  for kind, i, function in sublayers:
    if i in dead_blocks:
      scores[kind][i] = -1.0
      continue
    y = x + function(x)
    scores[kind][i] = cosine(x, y).mean()
    x = y
  return scores


def brute_force(sublayers, x, count, kinds, skip_partial=False):
  """Take live sublayers out of the list, one at a time."""
  live, order = list(sublayers), []
  while len(order) < count:
    dead = {i for _, i in order} if skip_partial else ()
    scores = toy_scores(live, x, dead)
    best = max(
      ((kind, i) for kind, i, _ in live if kind in kinds),
      key=lambda k: (scores[k[0]][k[1]], k[0] == "attention", -k[1]),
    )
    order.append(best)
    live = [s for s in live if s[:2] != best]
  return tuple(order)


def gated_scores(sublayers, x, gates):
  scores = {kind: np.zeros(L, np.float32) for kind in ("attention", "mlp")}
  for kind, i, function in sublayers:
    y = x + float(gates[kind][i]) * function(x)
    scores[kind][i] = cosine(x, y).mean()
    x = y
  return scores


def test_iterative_runs_the_live_half_of_a_layer():
  differs = 0
  for seed in range(6):
    sublayers = toy_sublayers(seed)
    x = np.random.default_rng(100 + seed).normal(size=(40, WIDTH))
    score = functools.partial(gated_scores, sublayers, x)
    for target, kinds in (("joint", ("attention", "mlp")), ("mlp", ("mlp",))):
      chosen = drops.select_iterative(score, L, 4, target)
      assert chosen.order == brute_force(sublayers, x, 4, kinds)
      differs += chosen.order != brute_force(
        sublayers, x, 4, kinds, skip_partial=True
      )
    once = drops.select(score(drops.Drops(num_layers=L).gates), 4, "joint")
    together = drops.select_iterative(score, L, 4, "joint", per_round=4)
    assert together.order == once.order
  assert differs  # else these data could not tell the variants apart


def test_iterative_sees_the_gates_of_each_round():
  seen = []

  def score(gates):
    seen.append({k: np.asarray(v).tolist() for k, v in gates.items()})
    return SCORES

  chosen = drops.select_iterative(score, 4, 3, "block", per_round=2)
  assert chosen.layers("mlp") == (2, 0, 1)
  assert [g["attention"] for g in seen] == [[1, 1, 1, 1], [0, 1, 0, 1]]
  assert all(g["attention"] == g["mlp"] for g in seen)
  worst = drops.select_iterative(
    lambda gates: SCORES, 4, 3, "attention", reverse=True
  )
  assert worst.layers("attention") == (3, 0, 1)


def test_choices_are_those_of_the_selections():
  """Each name is its selection; the scores are those of the dense model."""
  calls = []

  def score(gates):
    calls.append(gates)
    return SCORES | {"window": np.float32([0.1, 0.3, 0.2])}

  def choose(target, selection, count=2, **options):
    calls.clear()
    return drops.choose_drops(
      score, 4, count, target=target, selection=selection, **options
    )

  chosen, scores = choose("joint", "ranked")
  assert chosen == drops.select(SCORES, 2, "joint") and calls == [None]
  assert scores["mlp"] is SCORES["mlp"]
  chosen, _ = choose("joint", "reverse")
  assert chosen == drops.select(SCORES, 2, "joint", reverse=True)
  # Of a damage the lowest goes first, and its control is the other end.
  chosen, _ = choose("joint", "ranked", lowest_first=True)
  assert chosen == drops.select(SCORES, 2, "joint", reverse=True)
  chosen, _ = choose("joint", "reverse", lowest_first=True)
  assert chosen == drops.select(SCORES, 2, "joint")
  chosen, scores = choose("block", "consecutive")
  assert chosen.layers("attention") == (1, 2) and "window" not in scores
  chosen, scores = choose("mlp", "random", seed=3)
  assert chosen == drops.select_random(jax.random.key(3), 4, 2, "mlp")
  assert scores == {} and not calls
  for lowest in (False, True):
    chosen, scores = choose("mlp", "iterative", lowest_first=lowest)
    assert chosen == drops.select(SCORES, 2, "mlp", reverse=lowest)
    assert len(calls) == 2 and scores["mlp"] is SCORES["mlp"]
  for selection in drops.SELECTIONS:
    assert choose("block", selection, 0)[0].order == ()


def test_choices_that_cannot_be_made():
  def choose(**options):
    return drops.choose_drops(lambda gates: SCORES, 4, 1, **options)

  with pytest.raises(ValueError, match="'best': use one of ranked"):
    choose(target="mlp", selection="best")
  with pytest.raises(ValueError, match="of blocks, not mlp"):
    choose(target="mlp", selection="consecutive")
  with pytest.raises(ValueError, match="ranked needs scores"):
    drops.choose_drops(None, 4, 1, target="mlp")


def test_iterative_on_the_decoder_prefers_what_is_left(shared):
  config, params, tokens, _ = golden(shared, "stories260K")
  tokens = tokens[:2, :64]

  @jax.jit
  def observed(gates):
    _, seen = forward(
      config,
      params,
      tokens,
      gates=Gates(**gates),
      observe=similarities.observe_sublayers,
    )
    return {k: v.mean for k, v in seen.items()}

  chosen = drops.select_iterative(observed, config.num_layers, 4, "joint")
  first = drops.select(
    observed(drops.Drops(num_layers=config.num_layers).gates), 1, "joint"
  )
  assert chosen.order[:1] == first.order
  assert len(set(chosen.order)) == 4
