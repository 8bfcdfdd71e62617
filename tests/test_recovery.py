"""Masked training: what is fixed keeps its bits, and the loss is the loss."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune.models import KERNELS, decoder
from jaxprune.pocket import training
from jaxprune.probes import divergences
from jaxprune.recovery import finetune, states, trainable_mask

CONFIG = dataclasses.replace(
  training.model_config(40),
  num_layers=2,
  embed_dim=16,
  mlp_dim=24,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  sliding_layers=(False,) * 2,
)
TOKENS = np.random.default_rng(0).integers(0, 40, (12, 9)).astype(np.int32)
SHORT = finetune.Recovery(
  steps=3, batch=4, learning_rate=1e-2, weight_decay=0.1, warmup=0.0, clip=1e9
)


def pruned_model(seed=0):
  """A random model with random masks, zeros (some negative) in place."""
  dense = training.initial_params(CONFIG, jax.random.key(seed))
  rng = np.random.default_rng(seed)
  masks, layers = {}, jax.tree.map(np.array, dense["layers"])
  for group, kernel in KERNELS:
    w_LIO = layers[group][kernel]["kernel"]
    keep_LIO = rng.random(w_LIO.shape) < 0.5
    masks.setdefault(group, {})[kernel] = keep_LIO
    w_LIO[~keep_LIO] *= 0.0  # keeps the sign
  return dense, {**dense, "layers": layers}, masks


@pytest.fixture(scope="module")
def model():
  return pruned_model()


def bits(leaf):
  return np.asarray(leaf, np.float32).view(np.uint32)


def run(model, recovery=SHORT, **options):
  dense, pruned, masks = model
  return finetune.recover(
    CONFIG,
    pruned,
    TOKENS,
    recovery,
    masks=options.pop("masks", masks),
    dense=(CONFIG, dense),
    **options,
  )


# What is held fixed does not depend on the objective; the two differ in whether
# a dense model is read.
@pytest.mark.parametrize("objective", ["language", "distill"])
def test_removed_weights_keep_their_bits_and_all_others_move(model, objective):
  _, pruned, masks = model
  found = run(model, dataclasses.replace(SHORT, objective=objective))
  for group, kernel in KERNELS:
    before, after = (
      bits(tree["layers"][group][kernel]["kernel"])
      for tree in (pruned, found.params)
    )
    keep = masks[group][kernel]
    np.testing.assert_array_equal(before[~keep], after[~keep])
    assert (before[keep] != after[keep]).mean() > 0.99
  for name in ("attention_norm", "mlp_norm"):
    assert (
      bits(found.params["layers"][name]["scale"])
      != bits(pruned["layers"][name]["scale"])
    ).all()
  assert found.losses["loss"].shape == (3,)


def test_dropped_sublayers_keep_their_bits(model):
  """Kernels and norm of a dropped sublayer, though its masks are open."""
  dense, _, _ = model
  dropped = jax.tree.map(np.array, dense)
  dropped["layers"]["mlp"]["down"]["kernel"][1] = 0
  dropped["layers"]["attention"]["output"]["kernel"][0] = 0
  found = run((dense, dropped, {}), drops={"attention": [0], "mlp": [1]})
  after, before = found.params["layers"], dropped["layers"]
  for group, closed in (("attention", 0), ("mlp", 1)):
    for tree in (group, f"{group}_norm"):
      for old, new in zip(*map(jax.tree.leaves, (before[tree], after[tree]))):
        np.testing.assert_array_equal(bits(old[closed]), bits(new[closed]))
        assert (bits(old[1 - closed]) != bits(new[1 - closed])).mean() > 0.99


def test_one_seed_is_one_result(model):
  first, again = run(model), run(model)
  for one, other in zip(*map(jax.tree.leaves, (first.params, again.params))):
    np.testing.assert_array_equal(bits(one), bits(other))
  other = run(model, dataclasses.replace(SHORT, seed=1))
  assert (other.losses["loss"] != first.losses["loss"]).any()


def test_what_was_given_is_not_changed(model):
  dense, pruned, masks = model
  given = jax.tree.map(jnp.array, pruned)  # device arrays, which could be eaten
  before = jax.tree.map(np.array, pruned)
  run((dense, given, masks))
  for one, other in zip(*map(jax.tree.leaves, (before, given))):
    np.testing.assert_array_equal(bits(one), bits(other))


def test_objective_is_the_mean_over_positions(model):
  """Against the plain forward pass and the probes' KL, position by position."""
  dense, pruned, _ = model
  tokens_BT = jnp.asarray(TOKENS[:3])
  read = jax.jit(
    lambda tree: decoder.unembed(
      CONFIG, tree, decoder.forward(CONFIG, tree, tokens_BT)[0]
    )[:, :-1]
  )
  z_BTV, zq_BTV = read(dense), read(pruned)
  found = jax.jit(jax.vmap(jax.vmap(divergences.compare_distributions)))(
    z_BTV, zq_BTV
  )
  dz_BTV = np.asarray(zq_BTV - z_BTV, np.float64)
  p_BTV = np.asarray(jax.nn.softmax(z_BTV), np.float64)
  mean_BT1 = (p_BTV * dz_BTV).sum(-1, keepdims=True)
  variance = (p_BTV * (dz_BTV - mean_BT1) ** 2).sum(-1).mean() / 2
  log_q_BTV = np.asarray(jax.nn.log_softmax(zq_BTV), np.float64)
  nats = -np.take_along_axis(log_q_BTV, TOKENS[:3, 1:, None], 2).mean()
  for objective, expected in (
    ("language", nats),
    ("distill", found.kl.mean()),
    ("distill_variance", found.kl.mean() + 3 * variance),
  ):
    recovery = dataclasses.replace(SHORT, objective=objective)
    loss, parts = jax.jit(
      lambda recovery=recovery: finetune.objective(
        CONFIG, pruned, recovery, tokens_BT, weight=3.0, dense=(CONFIG, dense)
      )
    )()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert parts["loss"] == loss


def test_distillation_of_the_dense_model_by_itself_stays_there(model):
  dense, _, masks = model
  everything = jax.tree.map(np.ones_like, masks)
  found = run(
    (dense, dense, everything), dataclasses.replace(SHORT, learning_rate=1e-7)
  )
  assert np.abs(found.losses["kl"]).max() < 1e-6


def test_training_lowers_the_loss(model):
  for objective, name in (("distill", "kl"), ("language", "language")):
    found = run(
      model, dataclasses.replace(SHORT, objective=objective, steps=40)
    )
    assert found.losses[name][-1] < 0.8 * found.losses[name][0]


def test_one_step_is_adamw_on_what_is_free(model):
  """Adam's first step is the sign of the gradient; decay is on kernels."""
  dense, pruned, masks = model
  one = dataclasses.replace(SHORT, steps=1)
  tokens_BT = jnp.asarray(TOKENS[finetune.batch_rows(12, one, 0)])
  grads = jax.jit(
    jax.grad(
      lambda tree: finetune.objective(
        CONFIG, tree, one, tokens_BT, weight=1.0, dense=(CONFIG, dense)
      )[0]
    )
  )(pruned)
  after = run(model, one).params
  for group, kernel in (("mlp", "down"), ("attention", "query")):
    w, g, new = (
      np.asarray(tree["layers"][group][kernel]["kernel"])
      for tree in (pruned, grads, after)
    )
    expected = w - 1e-2 * masks[group][kernel] * (np.sign(g) + 0.1 * w)
    sure = np.abs(g) > 1e-5  # elsewhere Adam's epsilon shows
    assert sure.mean() > 0.5
    np.testing.assert_allclose(new[sure], expected[sure], atol=1e-4)
  g, new = (np.asarray(tree["final_norm"]["scale"]) for tree in (grads, after))
  np.testing.assert_allclose(new, 1 - 1e-2 * np.sign(g), atol=1e-4)


def test_rates_rise_and_fall():
  rate = finetune.schedule(
    finetune.Recovery(steps=100, warmup=0.1, learning_rate=2e-3)
  )
  np.testing.assert_allclose(
    [rate(step) for step in (0, 5, 10, 55, 100)],
    [0, 1e-3, 2e-3, 1e-3, 0],
    atol=1e-8,
  )


def test_rows_are_read_once_before_any_is_read_again():
  recovery = finetune.Recovery(batch=4)
  for first in (0, 3):
    rows = [
      finetune.batch_rows(13, recovery, first + step) for step in range(3)
    ]
    assert len(set(np.concatenate(rows).tolist())) == 12
  assert (
    finetune.batch_rows(13, recovery, 0) != finetune.batch_rows(13, recovery, 3)
  ).any()


def test_weights_that_the_last_step_breaks_are_an_error(model):
  _, pruned, masks = model
  wild = dataclasses.replace(
    SHORT, objective="language", steps=1, learning_rate=1e10, weight_decay=1e30
  )
  with pytest.raises(ValueError, match="weights are not finite after the last"):
    finetune.recover(CONFIG, pruned, TOKENS, wild, masks=masks)


def test_lines_come_by_the_clock_and_leave_compilation_out(model, monkeypatch):
  _, pruned, masks = model
  # Told to begin at 0 s; the first step is there at 100 s, then one every 3 s.
  clock = itertools.chain([0.0], itertools.count(100.0, 3.0))
  monkeypatch.setattr(finetune.time, "monotonic", lambda: next(clock))
  lines = []
  six = dataclasses.replace(SHORT, objective="language", steps=6)
  finetune.recover(
    CONFIG,
    pruned,
    TOKENS,
    six,
    masks=masks,
    logbook=finetune.Logbook(report=lines.append),
  )
  ends = [(line.split()[1], line.partition(" s")[2]) for line in lines]
  assert ends == [
    ("1/6", ""),
    ("3/6", ", 9 s left"),
    ("5/6", ", 3 s left"),
    ("6/6", ", 0 s left"),
  ]


def test_a_killed_run_goes_on_to_the_same_bits(model, tmp_path, monkeypatch):
  monkeypatch.setattr(finetune, "SAVE_SECONDS", 0.0)
  kept = states.States(tmp_path / "kept", dataclasses.asdict(SHORT))

  def die_at_the_end(line):
    if line.startswith("step 3/3"):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(model, logbook=finetune.Logbook(report=die_at_the_end, states=kept))
  lines = []
  again = run(model, logbook=finetune.Logbook(report=lines.append, states=kept))
  assert not lines[0].startswith("step 1/3") and "0 s left" in lines[-1]
  whole = run(model)
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  chex.assert_trees_all_equal(again.losses, whole.losses)
  five = dataclasses.replace(SHORT, steps=5)
  other = states.States(kept.folder, dataclasses.asdict(five))
  with pytest.raises(ValueError, match="state of another training"):
    run(model, logbook=finetune.Logbook(states=other))


def test_a_loss_that_is_not_finite_is_an_error(model):
  _, pruned, masks = model
  broken = jax.tree.map(np.array, pruned)
  broken["final_norm"]["scale"][0] = np.nan
  with pytest.raises(ValueError, match="not finite: lower learning_rate"):
    finetune.recover(
      CONFIG,
      broken,
      TOKENS,
      dataclasses.replace(SHORT, objective="language"),
      masks=masks,
    )


@pytest.mark.parametrize(
  "change,word",
  [
    ({"objective": "hope"}, "objective='hope'"),
    ({"steps": 0}, "steps=0"),
    ({"batch": 13}, "batch=13"),
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ({"weight": -1.0}, "weight=-1.0"),
    ({"weight": float("nan")}, "weight=nan"),
  ],
)
def test_bad_settings_are_named(change, word):
  with pytest.raises(ValueError, match=word):
    finetune.check(dataclasses.replace(SHORT, **change), TOKENS, True)


def test_distillation_needs_the_dense_model():
  with pytest.raises(ValueError, match="needs the dense model"):
    finetune.check(SHORT, TOKENS, False)


def test_masks_from_zeros_are_the_masks(model):
  _, pruned, masks = model
  found = trainable_mask.masks_from_zeros(pruned)
  for group, kernel in KERNELS:
    np.testing.assert_array_equal(found[group][kernel], masks[group][kernel])
  assert trainable_mask.masks_from_zeros(model[0]) == {}


def test_bad_masks_are_named(model):
  dense, pruned, masks = model
  with pytest.raises(ValueError, match="not zero"):
    trainable_mask.make_trainable_mask(dense, masks)
  with pytest.raises(ValueError, match="no such kernel"):
    trainable_mask.make_trainable_mask(
      pruned, {"mlp": {"side": masks["mlp"]["up"]}}
    )
  with pytest.raises(ValueError, match="shape"):
    trainable_mask.make_trainable_mask(
      pruned, {"mlp": {"down": masks["mlp"]["up"]}}
    )


def test_the_trainable_mask_is_of_bools_that_broadcast(model):
  _, pruned, masks = model
  trainable = trainable_mask.make_trainable_mask(
    pruned, masks, {"mlp": (1,), "attention": ()}
  )
  chex.assert_trees_all_equal_structs(trainable, pruned)
  for keep, leaf in zip(*map(jax.tree.leaves, (trainable, pruned))):
    chex.assert_type(keep, bool)
    chex.assert_rank(keep, np.ndim(leaf))
    chex.assert_is_broadcastable(keep.shape, leaf.shape)
  kept = trainable_mask.keep_fixed(
    trainable, jax.tree.map(jnp.ones_like, pruned), pruned
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(kept, pruned)


def test_a_dropped_sublayer_keeps_the_norms_before_and_after_it():
  params = jax.jit(decoder.init, static_argnums=0)(
    tiny_llama(post_norm=True), jax.random.key(0)
  )
  layers = trainable_mask.make_trainable_mask(params, {}, {"attention": [0]})
  for name, leaf in layers["layers"].items():
    if name.endswith("norm"):
      kept = [name.startswith("mlp"), True]
      assert leaf["scale"].ravel().tolist() == kept
