"""Options against the vocabulary: scores, certificate, chain rule, controls."""

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import probes

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
quick = hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)
# Jitted for speed: op by op, each new shape compiles a hundred small programs.
chain_rule = jax.jit(probes.chain_rule)
compare_options = jax.jit(probes.compare_options)
compare_tokens = jax.jit(probes.compare_tokens)
matched_tokens = jax.jit(probes.matched_tokens)


def run(function, *arguments):
  with jax.enable_x64(np.asarray(arguments[0]).dtype == np.float64):
    return jax.device_get(function(*arguments))


def log_softmax(z):
  z = z.astype(np.float64) - z.max()
  return z - np.log(np.exp(z).sum())


def kl(z, zq):
  """KL of two sets of logits as an integral of variances: no cancellation."""
  x = zq.astype(np.float64) - z
  nodes, weights = np.polynomial.legendre.leggauss(60)
  total = 0
  for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
    p = np.exp(log_softmax(z + node * x))
    total += weight * (1 - node) * (p @ (x - p @ x) ** 2)
  return total


def draw(seed, spread=2.0, change=1.0, dtype=np.float64, size=33):
  rng = np.random.default_rng(seed)
  z = (spread * rng.standard_normal(size)).astype(dtype)
  return z, (z + change * rng.standard_normal(size)).astype(dtype)


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  spread=st.floats(0, 6),
  change=st.floats(-6, 0.5).map(lambda e: 10**e),
  temperature=st.floats(0.3, 3),
  share=st.floats(0.02, 0.98),
)
def test_chain_rule(dtype, seed, spread, change, temperature, share):
  z, zq = draw(seed, spread, change, dtype)
  member = np.random.default_rng(seed + 1).random(33) < share
  member[:2] = True, False
  got = run(chain_rule, z, zq, member, temperature)
  rtol = 5e-5 if dtype == "float32" else 1e-9
  close = lambda a, b: np.testing.assert_allclose(  # noqa: E731
    a, b, rtol=rtol, atol=1e-30
  )
  parts = (
    got.kl_mass + got.mass * got.kl_inside + got.mass_outside * got.kl_outside
  )
  close(parts, got.kl)
  # Each part by itself.
  z, zq = z.astype(float) / temperature, zq.astype(float) / temperature
  p, q = np.exp(log_softmax(z)), np.exp(log_softmax(zq))
  close(got.kl, kl(z, zq))
  close(got.kl_inside, kl(z[member], zq[member]))
  close(got.kl_outside, kl(z[~member], zq[~member]))
  close(got.mass, p[member].sum())
  close(got.mass_outside, p[~member].sum())
  close(got.mass_pruned, q[member].sum())
  # Data processing: the whole sees at least what a part of it sees.
  assert min(got.kl_mass, got.kl_inside, got.kl_outside) >= 0
  assert got.mass * got.kl_inside <= got.kl * (1 + rtol) + 1e-30


def test_inside_may_exceed_the_whole():
  """KL_C > KL is no contradiction when p(C) is tiny."""
  z = np.array([12, 0, 0], np.float32)
  got = chain_rule(z, np.array([12, 3, -3], "f"), np.array([False, True, True]))
  assert got.kl_inside > 1 > 0.01 > got.kl
  assert got.mass * got.kl_inside <= got.kl


@pytest.mark.parametrize("everything", [True, False])
def test_whole_and_empty_sets(everything):
  z, zq = draw(0, dtype=np.float32)
  got = chain_rule(z, zq, np.full(33, everything), 1.0)
  whole = got.kl_inside if everything else got.kl_outside
  other = got.kl_outside if everything else got.kl_inside
  np.testing.assert_allclose(whole, got.kl, rtol=1e-6)
  assert got.kl_mass < 1e-12 and other == 0
  np.testing.assert_allclose(got.mass, float(everything), atol=1e-6)
  np.testing.assert_allclose(got.mass_outside, 1 - everything, atol=1e-6)


def test_chain_rule_with_masked_tokens():
  z, zq = draw(1, dtype=np.float32)
  member = np.arange(33) < 4
  gone = np.arange(33) == 1
  got = chain_rule(
    np.where(gone, -np.inf, z), np.where(gone, -np.inf, zq), member, 1.0
  )
  alone = chain_rule(z[~gone], zq[~gone], member[~gone], 1.0)
  np.testing.assert_allclose(
    jax.tree.leaves(got), jax.tree.leaves(alone), rtol=1e-5
  )
  # All of C lost: the mass term says so, and nothing is NaN.
  got = chain_rule(z, np.where(member, -np.inf, zq).astype("f"), member, 1.0)
  assert got.kl == got.kl_mass == np.inf and got.kl_inside == 0
  assert got.mass_pruned == 0 and np.isfinite(got.kl_outside)


def test_no_change_is_exact():
  z, _ = draw(2, dtype=np.float32)
  got = chain_rule(z, z, np.arange(33) < 5, 1.0)
  assert got.kl == got.kl_mass == got.kl_inside == got.kl_outside == 0
  assert got.mass == got.mass_pruned
  same = compare_options(z[:4], z[:4])
  assert same.inside.kl == 0 and same.inside.cos_p == 1
  assert same.max_pair_change == 0 and same.discordant == 0
  assert same.certified and not same.flip


def test_option_table():
  """Scores log(.4, .3, .2, .1) become log(.1, .3, .4, .2), half the mass."""
  scores = np.log([0.4, 0.3, 0.2, 0.1]).astype("f")
  pruned = np.log([0.05, 0.15, 0.2, 0.1]).astype("f")
  got = compare_options(scores, pruned)
  np.testing.assert_allclose(got.mass, 1, rtol=1e-6)
  np.testing.assert_allclose(got.mass_pruned, 0.5, rtol=1e-6)
  np.testing.assert_allclose(np.exp(got.log_probs), np.exp(scores), rtol=1e-6)
  np.testing.assert_allclose(
    np.exp(got.log_probs_pruned), [0.1, 0.3, 0.4, 0.2], rtol=1e-6
  )
  assert got.choice == 0 and got.choice_pruned == 2 and got.flip
  np.testing.assert_allclose(got.margin, np.log(4 / 3), rtol=1e-5)
  # The second option halves, the third stays: log 8 between first and third.
  np.testing.assert_allclose(got.max_pair_change, np.log(8), rtol=1e-6)
  assert not got.certified
  assert got.rank.tolist() == [0, 1, 2, 3]
  assert got.rank_pruned.tolist() == [3, 1, 0, 2]
  # Pairs 01, 02, 03 and 12 changed their order.
  assert got.discordant == 4
  p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.3, 0.4, 0.2])
  np.testing.assert_allclose(got.inside.kl, p @ np.log(p / q), rtol=1e-5)


def test_ties_rank_by_index():
  got = compare_options(np.array([1, 2, 2, 1], "f"), np.full(4, 3, "f"))
  assert got.rank.tolist() == [2, 0, 1, 3]
  assert got.rank_pruned.tolist() == [0, 1, 2, 3]
  assert got.choice == 1 and got.choice_pruned == 0 and got.margin == 0
  assert got.discordant == 2


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  change=st.floats(-7, 1).map(lambda e: 10**e),
  shift=st.floats(-50, 50),
)
def test_certificate_is_never_wrong(dtype, seed, change, shift):
  z, zq = draw(seed, 1.0, change, dtype, size=4)
  zq = (zq + shift).astype(dtype)
  got = run(compare_options, z, zq)
  assert got.flip == (z.argmax() != zq.argmax())
  assert not (got.certified and got.flip)
  change = zq.astype(float) - z
  # Scores near 50 carry a rounding error of their own.
  atol = 50 * np.finfo(dtype).eps
  np.testing.assert_allclose(got.max_pair_change, np.ptp(change), atol=atol)
  # It is given as soon as rounding cannot matter.
  ordered = np.sort(z.astype(float))
  if ordered[-1] - ordered[-2] > np.ptp(change) + 1000 * np.finfo(dtype).eps:
    assert got.certified


def test_certificate_is_tight():
  z = np.array([1, 0, -5], np.float32)
  kept = compare_options(z, np.array([0.51, 0.49, -5], "f"))
  assert kept.certified and not kept.flip
  flipped = compare_options(z, np.array([0.49, 0.51, -5], "f"))
  assert flipped.flip and not flipped.certified
  # A change of all options alike is none.
  assert compare_options(z, z + 16).certified
  # Equal best options are never certified.
  assert not compare_options(np.zeros(3, "f"), np.zeros(3, "f")).certified


def test_options_without_a_spelling():
  scores = np.array([-1, -np.inf, -2], np.float32)
  got = compare_options(scores, np.array([-1.5, -np.inf, -2], "f"))
  assert got.max_pair_change == 0.5 and got.certified
  lost = compare_options(scores, np.array([-np.inf, -np.inf, -2], "f"))
  assert lost.max_pair_change == np.inf and not lost.certified and lost.flip
  one = compare_options(np.array([-3], "f"), np.array([-9], "f"))
  assert one.margin == np.inf and one.certified


def test_spellings_add_up():
  """Two spellings of 0.1 and 0.2 make 0.3; a masked one is not there."""
  scores = np.log([[0.1, 0.2], [0.4, 0.9]]).astype("f")
  mask = np.array([[True, True], [True, False]])
  got = np.exp(probes.option_scores(scores, mask))
  np.testing.assert_allclose(got, [0.3, 0.4], rtol=1e-6)
  none = probes.option_scores(scores, np.array([[True, True], [False, False]]))
  assert none[1] == -np.inf
  # Several tokens: the caller adds their log-probabilities.
  tokens_CSM = np.log([[[0.5, 0.5], [0.1, 1]], [[0.2, 0.2], [0.3, 0.1]]])
  got = probes.option_scores(tokens_CSM.sum(-1).astype("f"))
  np.testing.assert_allclose(np.exp(got), [0.35, 0.07], rtol=1e-6)
  for shape in ((2,), (2, 3)):
    with pytest.raises(ValueError, match=r"give \[C, U\]"):
      probes.option_scores(np.zeros(shape), mask)


def test_tokens_against_the_vocabulary():
  z, zq = draw(3, dtype=np.float32)
  options = np.array([[4, 9], [7, 0], [20, 21]])
  mask = np.array([[True, True], [True, False], [True, True]])
  got = compare_tokens(z, zq, options, 0.7, mask)
  p, q = np.exp(log_softmax(z / 0.7)), np.exp(log_softmax(zq / 0.7))
  groups = [[4, 9], [7], [20, 21]]
  dense = np.array([p[group].sum() for group in groups])
  pruned = np.array([q[group].sum() for group in groups])
  np.testing.assert_allclose(np.exp(got.options.scores), dense, rtol=1e-5)
  np.testing.assert_allclose(
    np.exp(got.options.scores_pruned), pruned, rtol=1e-5
  )
  np.testing.assert_allclose(got.chain.mass, dense.sum(), rtol=1e-5)
  np.testing.assert_allclose(got.options.mass, dense.sum(), rtol=1e-5)
  np.testing.assert_allclose(got.whole.kl, p @ np.log(p / q), rtol=1e-5)
  np.testing.assert_allclose(got.chain.kl, got.whole.kl, rtol=1e-6)
  # Adding spellings forgets: option KL is at most token KL inside C.
  assert got.options.inside.kl <= got.chain.kl_inside


def test_margin_certificate_in_logits():
  """One token per option: margin and changes are those of z / T."""
  z, zq = draw(4, 1.0, 0.3, np.float32)
  options = np.array([[1, 0], [5, 0], [8, 0]])
  mask = np.array([[True, False]] * 3)
  got = compare_tokens(z, zq, options, 0.5, mask).options
  chosen, dz = z[options[:, 0]].astype(float), (zq - z)[options[:, 0]]
  top = np.sort(chosen)
  np.testing.assert_allclose(got.margin, (top[-1] - top[-2]) / 0.5, rtol=1e-4)
  np.testing.assert_allclose(got.max_pair_change, np.ptp(dz) / 0.5, rtol=1e-4)


def test_matched_tokens():
  z = np.sort(2 * np.random.default_rng(5).standard_normal(500)).astype("f")
  tokens = np.array([[100, 101], [250, 251], [400, 499]])
  log_p = log_softmax(z)
  keys = jax.random.split(jax.random.key(0), 200)
  # A cluster of its own is the hardest for drawing without replacement.
  draw_all = jax.vmap(lambda key: matched_tokens(key, z, tokens))
  drawn = np.asarray(draw_all(keys))
  assert drawn.shape == (200, 3, 2)
  for row in drawn.reshape(200, 6):
    assert np.unique(row).size == 6 and not np.isin(row, tokens).any()
  distance = abs(log_p[drawn] - log_p[tokens])
  assert distance[..., :-1].mean() < 0.2
  mass, target = np.exp(log_p[drawn]), np.exp(log_p[tokens])
  typical = [slice(None), (0, 0, 1, 1, 2), (0, 1, 0, 1, 0)]
  np.testing.assert_allclose(
    mass[tuple(typical)].mean(0), target[typical[1], typical[2]], rtol=0.1
  )
  # The top token has no equal: the next one stands in, or one close to it.
  assert np.all(z[drawn[:, 2, 1]] >= z[450])
  # Every key draws its own, the same key the same.
  assert len({tuple(row) for row in drawn.reshape(200, 6)}) > 150
  assert np.array_equal(draw_all(keys[::-1])[::-1], drawn)


def test_matched_tokens_avoid_masked_ones():
  z = np.zeros(12, np.float32)
  z[6:] = -np.inf
  for seed in range(5):
    drawn = matched_tokens(jax.random.key(seed), z, np.array([0, 1, 2]))
    assert sorted(drawn.tolist()) == [3, 4, 5]
  # A masked token is matched by the least likely of the others.
  z[3] = -5
  drawn = matched_tokens(jax.random.key(0), z, np.array([7]))
  assert drawn.tolist() == [3]
  with pytest.raises(ValueError, match="at most half"):
    probes.matched_tokens(jax.random.key(0), z, np.arange(7))


@pytest.mark.slow
def test_compare_matched():
  z, zq = draw(6, 1.0, 0.5, np.float32, size=200)
  options = np.array([[3, 4], [5, 6]])
  mask = np.array([[True, False], [True, True]])
  key = jax.random.key(1)

  @jax.jit
  def compare(z, zq):
    drawn = probes.compare_matched(key, z, zq, options, 64, 0.8, mask)
    # The sixth of them, step by step.
    one = jax.random.split(key, 64)[5]
    return drawn, probes.matched_tokens(one, z, options, 0.8)

  got, tokens = compare(z, zq)
  chex.assert_shape(got.options.scores, (64, 2))
  chex.assert_tree_shape_prefix(got, (64,))
  chex.assert_tree_all_finite((got.chain, got.whole))
  own = chain_rule(z, zq, np.isin(np.arange(200), [3, 5, 6]), 0.8)
  np.testing.assert_allclose(got.whole.kl, own.kl, rtol=1e-5)
  np.testing.assert_allclose(got.chain.mass.mean(), own.mass, rtol=0.1)
  member = np.isin(np.arange(200), np.asarray(tokens)[mask])
  one = chain_rule(z, zq, member, 0.8)
  np.testing.assert_allclose(got.chain.kl_inside[5], one.kl_inside, rtol=1e-4)
  log_p = log_softmax(z / 0.8)
  first = log_p[np.asarray(tokens)[0, 0]]
  np.testing.assert_allclose(got.options.scores[5, 0], first, rtol=1e-5)


@pytest.mark.slow
def test_jit_is_vmap():
  z_BV = np.stack([draw(seed, dtype="f")[0] for seed in range(3)])
  zq_BV = np.stack([draw(seed, dtype="f")[1] for seed in range(3)])
  member = np.arange(33) < 6
  over_batch = jax.jit(
    jax.vmap(chex.assert_max_traces(probes.chain_rule, n=1), (0, 0, None))
  )
  batch = over_batch(z_BV, zq_BV, member)
  over_batch(zq_BV, z_BV, ~member)  # the same program
  chex.assert_tree_shape_prefix(batch, (3,))
  chex.assert_tree_all_finite(batch)
  np.testing.assert_allclose(
    [leaf[1] for leaf in jax.tree.leaves(batch)],
    jax.tree.leaves(chain_rule(z_BV[1], zq_BV[1], member, 1.0)),
    rtol=1e-5,
  )


def test_errors():
  z = np.zeros(10, np.float32)
  with pytest.raises(ValueError, match=r"member has shape \(9,\)"):
    probes.chain_rule(z, z, np.ones(9, bool))
  with pytest.raises(ValueError, match="token id 10 is not in"):
    probes.compare_tokens(z, z, np.array([[1], [10]]))
  with pytest.raises(ValueError, match="token id 3 is given twice"):
    probes.compare_tokens(z, z, np.array([[3], [3]]))
  with pytest.raises(ValueError, match="token id -1 is not in"):
    probes.compare_matched(jax.random.key(0), z, z, np.array([[-1]]), 2)
  with pytest.raises(ValueError, match=r"give \[C, U\]"):
    probes.compare_tokens(z, z, np.array([1, 2]))
  with pytest.raises(ValueError, match="same length"):
    probes.compare_options(z, z[:3])
