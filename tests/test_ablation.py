"""Damage of leaving parts out: against NumPy, stock models and itself."""

import json

import jax
import numpy as np
import pytest

from jaxprune import checkpoints, devices
from jaxprune.models import make_gates
from jaxprune.models.decoder import Gates
from jaxprune.probes.decoder import ablation as decoder_ablation
from jaxprune.pruning.checkpoint import sublayers
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import allocation, drops
from jaxprune.pruning.patterns import NofM, Unstructured
from tests import hf_models, scripts

L = 3
TOKENS = np.random.default_rng(0).integers(3, 60, (4, 10)).astype(np.int32)


def log_softmax(z):
  z = np.asarray(z, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(z, z_pruned):
  """The textbook sum over the last axis, float64."""
  log_p, log_q = log_softmax(z), log_softmax(z_pruned)
  return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def variance(z, dz):
  p, dz = np.exp(log_softmax(z)), np.asarray(dz, np.float64)
  return (p * dz**2).sum(-1) - (p * dz).sum(-1) ** 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A stock model, its folder opened, its config and parameters here."""
  model, config, params = hf_models.build(
    "llama", num_hidden_layers=L, bos_token_id=1, eos_token_id=2
  )
  folder = tmp_path_factory.mktemp("tiny")
  model.save_pretrained(folder)
  source = checkpoints.open_checkpoint(folder)
  np.savez(folder / "ids.npz", calibration=TOKENS)
  return model, source, config, params


def stock_logits(model, attention=(), mlp=()):
  """Logits of a stock model with output projections at zero for the moment."""
  import torch

  layers = model.model.layers
  closed = [layers[i].self_attn.o_proj.weight for i in attention] + [
    layers[i].mlp.down_proj.weight for i in mlp
  ]
  kept = [weight.detach().clone() for weight in closed]
  with torch.no_grad():
    for weight in closed:
      weight.zero_()
    z = model(torch.from_numpy(TOKENS).long()).logits.double().numpy()
    for weight, old in zip(closed, kept):
      weight.copy_(old)
  return z


# --- the decoder ------------------------------------------------------------


def test_drops_are_those_of_the_stock_model_without_them(tiny):
  model, _, config, params = tiny
  found = decoder_ablation.ablate_sublayers(
    config, params, TOKENS, memory=Memory(micro_batch=2)
  )
  dense = stock_logits(model)
  closed = {
    "attention": lambda i: dict(attention=[i]),
    "mlp": lambda i: dict(mlp=[i]),
    "block": lambda i: dict(attention=[i], mlp=[i]),
  }
  for kind, drop in closed.items():
    for i in range(L):
      z = stock_logits(model, **drop(i))
      np.testing.assert_allclose(
        found[kind]["kl"][i], kl(dense, z).mean(-1), rtol=1e-3
      )
      np.testing.assert_allclose(
        found[kind]["kl_estimate"][i],
        variance(dense, z - dense).mean(-1) / 2,
        rtol=1e-3,
      )
  # One more, beside what is gone; the reference stays the dense model.
  more = decoder_ablation.ablate_sublayers(
    config,
    params,
    TOKENS,
    kinds=("mlp",),
    gates=make_gates(config, attention=[1], mlp=[0]),
  )["mlp"]["kl"]
  for i in range(L):
    z = stock_logits(model, attention=[1], mlp=sorted({0, i}))
    np.testing.assert_allclose(more[i], kl(dense, z).mean(-1), rtol=1e-3)


def test_nothing_dropped_is_exactly_nothing(tiny):
  _, _, config, params = tiny
  gates = make_gates(config)
  same = jax.tree.map(lambda leaf: np.stack([leaf] * 3), gates)
  found = decoder_ablation.ablate_gates(config, params, TOKENS, same)
  assert all(not leaf.any() for leaf in found.values())


def test_an_empty_sublayer_goes_first(tiny, tmp_path):
  """It does exactly nothing, and its neighbours do something."""
  _, source, config, params = tiny
  layers = jax.tree.map(np.array, params["layers"])
  layers["mlp"]["down"]["kernel"][1] = 0
  found = decoder_ablation.ablate_sublayers(
    config, {**params, "layers": layers}, TOKENS, kinds=("mlp",)
  )
  assert not found["mlp"]["kl"][1].any()
  assert found["mlp"]["kl"][[0, 2]].all()
  sublayers.prune_drops(
    source, tmp_path / "out", drops.Drops(num_layers=L, order=(("mlp", 1),)), {}
  )
  chosen, _ = choose(
    checkpoints.open_checkpoint(tmp_path / "out"),
    1,
    target="joint",
    tokens=TOKENS,
  )
  assert chosen.order == (("mlp", 1),)


def test_small_steps_are_what_the_derivative_says(tiny):
  """KL of closing a gate by e is e^2 times the first-order KL."""
  _, _, config, params = tiny
  slopes = decoder_ablation.predict_sublayers(
    config, params, TOKENS, kinds=("attention", "block")
  )
  step = 0.02
  candidates = jax.tree.map(
    lambda leaf: 1 - step * (1 - leaf),
    decoder_ablation.drop_candidates(
      make_gates(config), ("attention", "block")
    ),
  )
  found = decoder_ablation.ablate_gates(config, params, TOKENS, candidates)[
    "kl"
  ]
  expected = step**2 * np.concatenate([slopes["attention"], slopes["block"]])
  np.testing.assert_allclose(found[1:].mean(1), expected.mean(1), rtol=4 * step)


def choose(source, count, *, target, tokens=TOKENS, on_round=None, **options):
  """The choice by KL."""
  rounds = {"on_round": on_round} if on_round else {}
  return drops.choose_drops(
    decoder_ablation.kl_score(source, tokens, target, **rounds),
    source.config.num_layers,
    count,
    target=target,
    lowest_first=True,
    **options,
  )


def test_ranking_is_joint_and_greedy_by_the_whole_loss(tiny):
  _, source, config, params = tiny
  single = decoder_ablation.ablate_sublayers(config, params, TOKENS)
  names = [(kind, i) for kind in ("attention", "mlp") for i in range(L)]
  order = sorted(names, key=lambda name: single[name[0]]["kl"][name[1]].mean())
  decoder_ablation._ablate_gates.clear_cache()
  chosen, scores = choose(source, 4, target="joint")
  assert list(chosen.order) == order[:4]
  np.testing.assert_allclose(
    scores["mlp"], single["mlp"]["kl"].mean(1), rtol=1e-5
  )
  rounds = []
  greedy, _ = choose(
    source,
    4,
    target="joint",
    selection="iterative",
    tokens=TOKENS,
    on_round=rounds.append,
  )
  # All rounds and both choices are one program.
  assert decoder_ablation._ablate_gates._cache_size() == 1
  assert rounds == [0, 1, 2, 3]
  gone = []
  for _ in range(4):  # brute force
    left = [name for name in names if name not in gone]
    sets = [[*gone, name] for name in left]
    gates = [
      make_gates(
        config,
        attention=[i for k, i in each if k == "attention"],
        mlp=[i for k, i in each if k == "mlp"],
      )
      for each in ([], *sets)
    ]
    candidates = jax.tree.map(lambda *leaves: np.stack(leaves), *gates)
    total = decoder_ablation.ablate_gates(config, params, TOKENS, candidates)
    gone.append(left[int(np.argmin(total["kl"][1:].mean(1)))])
  assert list(greedy.order) == gone


def test_blocks_and_none(tiny):
  _, source, config, params = tiny
  single = decoder_ablation.ablate_sublayers(
    config, params, TOKENS, kinds=("block",)
  )["block"]["kl"].mean(1)
  chosen, scores = choose(source, 2, target="block", tokens=TOKENS)
  assert (
    chosen.layers("mlp")
    == chosen.layers("attention")
    == tuple(np.argsort(single)[:2])
  )
  assert set(scores) == {"block"}
  none, scores = choose(
    source, 0, target="block", selection="iterative", tokens=TOKENS
  )
  assert none.order == () and scores["block"].shape == (L,)


def test_what_cannot_be_chosen(tiny):
  _, source, config, params = tiny
  for wrong, message in (
    (dict(count=9, target="attention", tokens=TOKENS), "drop count is 9"),
    (dict(count=1, target="head", tokens=TOKENS), "target is 'head'"),
    (dict(count=1, target="mlp", tokens=None), "needs calibration tokens"),
    (dict(count=1, target="mlp", tokens=TOKENS + 90), "the vocabulary has"),
  ):
    with pytest.raises(ValueError, match=message):
      choose(source, wrong.pop("count"), **wrong)
  with pytest.raises(ValueError, match="kinds"):
    decoder_ablation.ablate_sublayers(config, params, TOKENS, kinds=("head",))


def test_devices_and_micro_batches_do_not_matter(tiny):
  _, _, config, params = tiny
  tokens = np.concatenate([TOKENS, TOKENS[::-1]])
  mesh = devices.make_mesh({"data": 4, "model": 2})
  one = decoder_ablation.ablate_sublayers(
    config, params, tokens, kinds=("attention",)
  )["attention"]["kl"]
  many = decoder_ablation.ablate_sublayers(
    config,
    params,
    tokens,
    kinds=("attention",),
    memory=Memory(micro_batch=4, mesh=mesh),
  )["attention"]["kl"]
  np.testing.assert_allclose(one, many, rtol=1e-4)
  np.testing.assert_allclose(one[:, :4], one[:, :3:-1], rtol=1e-4)


# --- allocation -------------------------------------------------------------


def test_layers_pruned_alone(tiny):
  """Magnitude 2:4 written out, on the stock model, one layer at a time."""
  import torch

  model, source, *_ = tiny
  found = decoder_ablation.prune_layers_alone(
    source, "magnitude", NofM(keep=2, of=4), TOKENS
  )
  dense = stock_logits(model)
  for i in range(L):
    kept = {}
    with torch.no_grad():
      for weight in model.model.layers[i].parameters():
        if weight.ndim == 2:
          kept[weight] = weight.detach().clone()
          four = weight.abs().reshape(len(weight), -1, 4)
          low = four.argsort(-1)[..., :2]  # inputs are the last axis here
          four = weight.reshape(len(weight), -1, 4).scatter(-1, low, 0.0)
          weight.copy_(four.reshape(weight.shape))
    z = stock_logits(model)
    with torch.no_grad():
      for weight, old in kept.items():
        weight.copy_(old)
    np.testing.assert_allclose(found[i], kl(dense, z).mean(-1), rtol=1e-3)
  nothing = decoder_ablation.prune_layers_alone(
    source, "magnitude", Unstructured(sparsity=0.0), TOKENS
  )
  assert not nothing.any()


def test_allocation_by_hand():
  e = np.e
  # Logarithms 0, 1, 2: steps of the spread, the mean kept.
  np.testing.assert_allclose(
    allocation.by_loss([1, e, e**2], 0.5, spread=0.1), [0.6, 0.5, 0.4]
  )
  # A factor changes nothing; a harmless layer counts like the least harmful.
  np.testing.assert_allclose(
    allocation.by_loss([0, 7, 7 * e, 7 * e**2], 0.5, spread=0.1),
    [0.55 + 0.025, 0.55 + 0.025, 0.475, 0.375],
    atol=1e-9,
  )
  assert allocation.by_loss([3.0, 3.0], 0.6) == (0.6, 0.6)
  assert allocation.by_loss([0.0, 0.0], 0.6) == (0.6, 0.6)
  sizes = [1, 3, 2]
  clipped = np.array(
    allocation.by_loss([1e-9, 1.0, 5.0], 0.9, spread=0.4, sizes=sizes)
  )
  np.testing.assert_allclose(clipped @ sizes, 0.9 * 6, rtol=1e-9)
  assert clipped[0] > clipped[1] > clipped[2] and clipped.max() < 1
  for wrong in ([1.0, -1.0], [1.0, np.nan], [np.inf, 1.0]):
    with pytest.raises(ValueError, match="losses"):
      allocation.by_loss(wrong, 0.5)


# --- the script -------------------------------------------------------------


def test_prune_by_kl(tiny, tmp_path):
  _, source, config, params = tiny
  flags = [f"--model={source.folder}", f"--calibration={source.folder}/ids.npz"]
  done = scripts.call(
    "prune",
    *flags,
    "--method=kl_iterative",
    "--drop_target=joint",
    "--drop_count=2",
    f"--out={tmp_path}/drop",
  )
  assert done.returncode == 0, done.stderr
  greedy, scores = choose(
    source, 2, target="joint", selection="iterative", tokens=TOKENS
  )
  summary = json.loads((tmp_path / "drop/summary.json").read_text())
  assert summary["dropped"] == [list(pair) for pair in greedy.order]
  rows = [
    json.loads(line)
    for line in (tmp_path / "drop/records.jsonl").read_text().splitlines()
  ]
  np.testing.assert_allclose(
    [row["kl_mlp"] for row in rows], scores["mlp"], rtol=1e-3
  )
  assert [row["mlp_kept"] for row in rows] == [
    i not in greedy.layers("mlp") for i in range(L)
  ]
  done = scripts.call(
    "prune",
    *flags,
    "--method=magnitude",
    "--sparsity=0.5",
    "--allocation=kl",
    "--spread=0.2",
    f"--out={tmp_path}/spread",
  )
  assert done.returncode == 0, done.stderr
  rows = [
    json.loads(line)
    for line in (tmp_path / "spread/records.jsonl").read_text().splitlines()
  ]
  harm, shares = (
    np.array([row[name] for row in rows]) for name in ("kl_alone", "sparsity")
  )
  assert list(np.argsort(harm)) == list(np.argsort(-shares))
  assert abs(shares.mean() - 0.5) < 0.02 and 0.3 < np.ptp(shares) <= 0.41


def test_gates_of_candidates_by_hand():
  now = Gates(attention=np.array([1.0, 0.0]), mlp=np.array([1.0, 1.0]))
  found = decoder_ablation.drop_candidates(now, ("mlp", "block"))
  np.testing.assert_array_equal(
    found.attention, [[1, 1], [1, 0], [1, 0], [0, 0], [1, 0]]
  )
  np.testing.assert_array_equal(
    found.mlp, [[1, 1], [0, 1], [1, 0], [0, 1], [1, 0]]
  )
