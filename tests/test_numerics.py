"""Every method on numbers that break careless code: right, or refused.

The table is methods x cases: masks against NumPy in float64, exact counts with
ties by index, and nan in all weights where nothing can be compared.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.pruning import reconstruction, registry
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint import finite
from jaxprune.pruning.layerwise import drops, owl, similarities
from jaxprune.pruning.methods import wanda
from jaxprune.pruning.patterns import Levels, Unstructured
from jaxprune.studies import prune

INPUTS, OUTPUTS, SHAPE = 8, 4, (2, 6)


def _cases():
  """Name to weights [I, O], inputs [B, T, I] and which tokens count."""
  rng = np.random.default_rng(0)
  w_IO = rng.normal(size=(INPUTS, OUTPUTS))
  x_BTI = rng.normal(size=(*SHAPE, INPUTS)) * np.exp(rng.normal(size=INPUTS))
  valid_BT = np.ones(SHAPE, bool)

  def case(w=w_IO, x=x_BTI, valid=valid_BT):
    return np.float32(w), np.float32(x), valid

  def having(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed

  sign_IO = np.where(np.arange(INPUTS)[:, None] % 2, np.ones((1, OUTPUTS)), -1)
  twin_BTI = having(x_BTI, np.s_[..., 3], x_BTI[..., 2])
  few_BT = np.zeros(SHAPE, bool)
  few_BT[0, :3] = True
  one_BT = np.zeros(SHAPE, bool)
  one_BT[1, 2] = True
  return {
    "nan weight": case(w=having(w_IO, (7, 1), np.nan)),
    "inf weight": case(w=having(w_IO, (2, 1), np.inf)),
    "overflow in a sequence": case(x=having(x_BTI, (1, 2, 3), 1e25)),
    "plain": case(),
    "dead input": case(x=having(x_BTI, np.s_[..., 3], 0)),
    "constant input": case(x=having(x_BTI, np.s_[..., 3], 1)),
    "twin columns": case(x=twin_BTI),
    "singular gram": case(valid=few_BT),
    "one token": case(valid=one_BT),
    "all ties": case(w=sign_IO, x=np.ones_like(x_BTI)),
    "zero kernel": case(w=0 * w_IO),
    "dropped sublayer": case(w=0 * w_IO, x=0 * x_BTI),
    "identity": case(w=np.eye(INPUTS, OUTPUTS)),
  }


CASES = _cases()
BROKEN = tuple(CASES)[:3]


def _score(name, w_IO, x_BTI, valid_BT):
  """What a method ranks, in float64."""
  size_IO = np.abs(np.float64(w_IO))
  x_RI = np.float64(x_BTI[valid_BT])
  power_I = (x_RI**2).sum(axis=0) / valid_BT.any(axis=1).sum()
  if name == "magnitude":
    return size_IO
  if name == "ria":
    into_O, from_I = size_IO.sum(axis=0), size_IO.sum(axis=1)
    share_IO = size_IO / np.where(into_O > 0, into_O, 1) + size_IO / np.where(
      from_I > 0, from_I, 1
    ).reshape(-1, 1)
    return share_IO * power_I[:, None] ** 0.25
  if name == "neuron":
    return (size_IO.mean(axis=1) * power_I)[:, None]
  if name == "neuron_root":
    return (size_IO.mean(axis=1) * np.sqrt(power_I))[:, None]
  if name == "flap":
    spread_I = ((x_RI - x_RI.mean(axis=0)) ** 2).sum(axis=0)
    spread_I /= max(len(x_RI) - 1, 1)
    return (spread_I * (size_IO**2).sum(axis=1))[:, None]
  return size_IO * np.sqrt(power_I)[:, None]  # wanda and its variant


def _lowest_gone(score_IO, counts_O):
  """Mask without so many lowest scores of each output, ties by index."""
  keep_IO = np.ones(score_IO.shape, bool)
  order_IO = np.argsort(score_IO, axis=0, kind="stable")
  for output, count in enumerate(counts_O):
    keep_IO[order_IO[:count, output], output] = False
  return keep_IO


def _error(delta_IO, x_BTI, valid_BT):
  y_RO = np.float64(x_BTI[valid_BT]) @ np.float64(delta_IO)
  return (y_RO**2).sum(axis=0)


@functools.cache
def _observe(statistic):
  return jax.jit(OBSERVERS[statistic].observe)


@jax.jit
def _rtn(w_IO):
  return registry.METHODS["rtn"].apply(
    w_IO, None, Levels(bits=4, group_size=None)
  )


def _statistics(row, x_BTI, valid_BT):
  if row.statistic is None:
    return None
  return _observe(row.statistic)(x_BTI, valid_BT)


@pytest.mark.parametrize("name", registry.names(registry.ENTRIES))
def test_kernels(name):
  row = registry.METHODS[name]
  pattern = (
    Levels(bits=4, group_size=None)
    if row.rounds
    else Unstructured(sparsity=0.5, group=row.groups[0])
  )
  apply = jax.jit(lambda w, prepared: row.apply(w, prepared, pattern))
  for case, (w_IO, x_BTI, valid_BT) in CASES.items():
    seen = _statistics(row, x_BTI, valid_BT)
    if case == BROKEN[2] and name == "sparsegpt":
      with pytest.raises(ValueError, match="inf or nan"):
        row.prepare(seen)
      continue
    new_IO, mask_IO = apply(w_IO, row.prepare(seen)[0])
    new_IO, note = np.asarray(new_IO), f"{name} on {case}"
    if case in BROKEN[:2] or (case == BROKEN[2] and row.statistic):
      assert np.isnan(new_IO).all(), note
      continue
    assert np.isfinite(new_IO).all(), note
    if row.rounds:
      _check_rounded(name, case, new_IO)
    else:
      _check_mask(name, case, new_IO, np.asarray(mask_IO))


def _check_rounded(name, case, new_IO):
  w_IO, x_BTI, valid_BT = CASES[case]
  low_O, high_O = (f(w_IO, axis=0) for f in (np.min, np.max))
  step_O = (np.maximum(high_O, 0) - np.minimum(low_O, 0)) / 15
  if name == "rtn":
    assert (np.abs(new_IO - w_IO) <= 0.5001 * step_O).all(), case
    return
  plain_IO, _ = _rtn(w_IO)
  found, plain = (
    _error(new - w_IO, x_BTI, valid_BT).sum()
    for new in (new_IO, np.asarray(plain_IO))
  )
  size = _error(np.abs(w_IO), np.abs(x_BTI), valid_BT).sum()
  assert found <= plain + 1e-5 * size, case


def _check_mask(name, case, new_IO, mask_IO):
  w_IO, x_BTI, valid_BT = CASES[case]
  note, half = f"{name} on {case}", INPUTS // 2
  assert (new_IO[~mask_IO] == 0).all(), note
  assert (~mask_IO).sum() == half * OUTPUTS, note
  if name == "sparsegpt":
    dead_I = (x_BTI[valid_BT] == 0).all(axis=0)
    assert (new_IO[dead_I] == 0).all(), note
    return
  np.testing.assert_array_equal(new_IO, np.where(mask_IO, w_IO, 0))
  if name == "sparse_swaps":
    assert ((~mask_IO).sum(axis=0) == half).all(), note
    first_IO = _lowest_gone(
      _score("wanda", w_IO, x_BTI, valid_BT), [half] * OUTPUTS
    )
    found_O, first_O = (
      _error(np.where(keep_IO, 0, w_IO), x_BTI, valid_BT)
      for keep_IO in (mask_IO, first_IO)
    )
    size_O = _error(np.abs(w_IO), np.abs(x_BTI), valid_BT)
    assert (found_O <= first_O + 1e-5 * size_O).all(), note
    return
  counts_O = [half] * OUTPUTS
  if name == "wanda_variant":  # Spread over outputs as the scores will have it.
    counts_O = (~mask_IO).sum(axis=0)
  want_IO = _lowest_gone(_score(name, w_IO, x_BTI, valid_BT), counts_O)
  np.testing.assert_array_equal(mask_IO, want_IO, note)


@pytest.mark.parametrize("name", registry.names(registry.HIDDEN_UNITS))
def test_units(name):
  row = registry.METHODS[name]
  apply = jax.jit(lambda mlp, seen: row.apply(mlp, seen, 0.5))
  for case, (w_IO, x_BTI, valid_BT) in CASES.items():
    up_DF = jnp.ones((3, INPUTS))
    mlp = {"up": {"kernel": up_DF}, "down": {"kernel": w_IO}}
    new, masks, bias_D = apply(mlp, _statistics(row, x_BTI, valid_BT))
    if case in BROKEN:
      assert not finite.all_finite((new, bias_D)), f"{name} on {case}"
      continue
    assert finite.all_finite((new, bias_D)), f"{name} on {case}"
    want_F1 = _lowest_gone(_score(name, w_IO, x_BTI, valid_BT), [INPUTS // 2])
    for kernel, want in {"down": want_F1, "up": want_F1.T}.items():
      np.testing.assert_array_equal(
        masks[kernel],
        np.broadcast_to(want, masks[kernel].shape),
        f"{name} on {case}",
      )


LAYERS = 3


def _streams():
  """Name to residual streams before attention and MLPs, [L + 1, 2, T, D].

  Layer 1 is the unusual one.
  """
  rng = np.random.default_rng(1)
  h = np.float32(rng.normal(size=(LAYERS + 1, 2, 5, 6)))
  same = np.broadcast_to(h[:1, :1], h.shape).copy()

  def having(place, value):
    changed = h.copy()
    changed[place] = value
    return changed

  identity = h.copy()
  identity[1, 1] = identity[2, 0] = identity[1, 0]
  return {
    "nan weight": having((1, 0, 2, 3), np.nan),
    "inf weight": having((1, 0, 2, 3), np.inf),
    "overflow in a sequence": having((1, 0), h[1, 0] * 1e25),
    "dead": having(1, 0),
    "constant": having(1, 1),
    "all ties": same,
    "identity block": identity,
  }


@jax.jit
def _similar(h):
  def layer(start, mid, end):
    tape = {"residual_in": start, "residual_mid": mid, "residual_out": end}
    sums = similarities.observe_sublayers(
      {name: x_TD[None] for name, x_TD in tape.items()}
    )
    return {name: s.mean for name, s in sums.items()}

  return jax.vmap(layer)(h[:-1, 0], h[:-1, 1], h[1:, 0])


def _cosine(x, y):
  length = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
  return ((x * y).sum(-1) / np.where(length > 0, length, 1)).mean()


@pytest.mark.parametrize("name", registry.names(registry.SUBLAYERS))
def test_drops(name):
  row = registry.METHODS[name]
  target, kl = row.target or "joint", row.score == "kl"
  for case, h in _streams().items():
    scores = {k: np.array(v) for k, v in _similar(h).items()}
    scores["window"] = scores["block"]
    if kl:  # What leaves the output alone has the highest cosine and no loss.
      scores = {k: np.float32(1) - v for k, v in scores.items()}
    choose = functools.partial(
      drops.choose_drops,
      lambda gates, scores=scores: scores,
      LAYERS,
      1,
      target=target,
      selection=row.selection,
      lowest_first=kl,
    )
    note = f"{name} on {case}"
    if case in BROKEN and row.selection != "random":
      with pytest.raises(ValueError, match="inf or nan at"):
        choose()
      continue
    order = choose()[0].order
    if row.selection == "random":
      assert len(order) == 1, note
      continue
    h = np.float64(h)
    value = {
      "attention": [_cosine(h[i, 0], h[i, 1]) for i in range(LAYERS)],
      "mlp": [_cosine(h[i, 1], h[i + 1, 0]) for i in range(LAYERS)],
      "block": [_cosine(h[i, 0], h[i + 1, 0]) for i in range(LAYERS)],
    }
    kinds = ("attention", "mlp") if target == "joint" else (target,)
    # float32 sees the cosine of equal vectors as 1 up to rounding.
    ranked = np.round(np.concatenate([value[k] for k in kinds]), 5)
    first = int(
      (np.argmin if row.selection == "reverse" else np.argmax)(ranked)
    )
    kind, index = kinds[first // LAYERS], first % LAYERS
    want = [(k, index) for k in ("attention", "mlp") if kind in (k, "block")]
    assert list(order) == want, note


def test_the_variant_removes_what_it_says():
  apply = jax.jit(wanda.wanda_variant, static_argnums=2)
  for case in ("plain", "all ties", "dead input", "zero kernel"):
    w_IO, x_BTI, valid_BT = CASES[case]
    seen = _observe("squares")(x_BTI, valid_BT)
    for sparsity in (0.0, 0.999):
      new_IO, mask_IO = apply(w_IO, seen, Unstructured(sparsity=sparsity))
      gone = int((~mask_IO).sum())
      assert gone == int(w_IO.size * sparsity), (case, sparsity)
  assert (w_IO == new_IO).all()


def test_nothing_lost_of_nothing_is_no_error():
  relative = jax.jit(reconstruction.relative_energy)
  for error, dense, want in [
    (1, 4, 0.25),
    (0, 0, 0),
    (4, 0, 1),
    (np.nan, 0, np.nan),
    (np.inf, np.inf, np.nan),
  ]:
    found = relative(np.float32(error), np.float32(dense))
    np.testing.assert_equal(np.asarray(found), np.float32(want))


TOKENS = np.random.default_rng(0).integers(6, 40, (4, 8)).astype(np.int32)
TOKENS[2, 3] = LOUD = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Llama of one layer, of which one token makes the MLP overflow."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=16,
    initializer_range=0.2,
  )
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    # Feature 0 is zero for all other tokens, before and after attention.
    model.model.embed_tokens.weight[:, 0] = 0
    model.model.embed_tokens.weight[LOUD, 0] = 1
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight[0] = 0
    for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
      part.weight[:, 0] = 1e15 * torch.sign(part.weight[:, 0])
  path = tmp_path_factory.mktemp("overflow")
  model.save_pretrained(path)
  return path


OVERFLOW = {
  "wanda": "layer 0, mlp/down: calibration sequence 2 .* inputs reach 3.*e.30",
  "sparsegpt": "layer 0, mlp/down: calibration sequence 2 ",
  "awq": "layer 0, mlp/down: calibration sequence 2 ",
  "neuron": "layer 0, mlp/down: calibration sequence 2 ",
  "drop_mlp": "layer 0, block and mlp: .*sequence 2 leaves the layer with",
}


@pytest.mark.parametrize("name", OVERFLOW)
def test_an_overflow_names_the_sequence(folder, tmp_path, name):
  row = registry.find(name)
  change = Change(
    method=name,
    pattern=None
    if row.unit == registry.SUBLAYERS
    else prune.make_pattern(
      name, sparsity=0.5, levels=Levels(bits=4, group_size=None)
    ),
    drop_count=1,
  )
  source = checkpoints.open_checkpoint(folder)
  for _ in range(2 if name == "wanda" else 1):  # The same at a second try.
    with pytest.raises(ValueError) as error:
      prune.prune(source, tmp_path / "out", change, TOKENS)
    assert re.search(OVERFLOW[name], str(error.value)), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_allocation_names_the_sequence(folder):
  source = checkpoints.open_checkpoint(folder)
  change = Change(
    method="wanda",
    pattern=prune.make_pattern("wanda", sparsity=0.5),
    allocation="owl",
  )
  with pytest.raises(ValueError, match="mlp/down: calibration sequence 2 "):
    prune.spread_pattern(source, change, TOKENS)
  with pytest.raises(ValueError, match=r"layers \[1\] overflow"):
    owl.owl([0.1, np.nan], 0.5)
  assert np.isnan(owl.outlier_fraction([jnp.float32([1, np.inf])]))
