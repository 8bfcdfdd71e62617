"""Encoders pruned layer by layer, with padding, and as stock sees them."""

import chex
import hf_encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxprune import checkpoints, devices
from jaxprune.models import EncoderConfig, encoder
from jaxprune.models.decoder import Gates
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.checkpoint.streaming import Memory, PaddedTokens
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.patterns import NofM, Unstructured

# Outside of jit every operation is a program of its own.
forward = jax.jit(encoder.forward, static_argnums=0, static_argnames="observe")

draw = np.random.default_rng(0)
TOKENS = draw.integers(4, 61, (6, 10))
VALID = np.arange(10)[None] < np.array([10, 4, 7, 10, 2, 9])[:, None]
HALF = Unstructured(sparsity=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  hf_encoders.save(folder)
  return checkpoints.open_checkpoint(folder, EncoderConfig)


def prune(
  source,
  out,
  method="wanda",
  pattern=HALF,
  tokens=TOKENS,
  valid=VALID,
  **options,
):
  if tokens is not None:
    tokens = PaddedTokens(ids=tokens, valid=valid)
  return weights.prune_weights(
    source,
    out,
    method=method,
    pattern=pattern,
    tokens=tokens,
    **{"memory": Memory(micro_batch=3), **options},
  )


def load(folder):
  return checkpoints.load_params(
    checkpoints.open_checkpoint(folder, EncoderConfig), jnp.float32
  )


@pytest.fixture(scope="module")
def wanda(source, tmp_path_factory):
  out = tmp_path_factory.mktemp("pruned") / "wanda"
  return out, prune(source, out)


def test_wanda_of_the_first_layer_is_the_equation(source, wanda):
  """|W| * norm of the input over valid tokens, half of each output."""
  model = transformers.BertModel.from_pretrained(source.folder).eval()
  with torch.no_grad():
    seen = model.embeddings(torch.tensor(TOKENS)).numpy().astype(np.float64)
  norm_I = np.sqrt((seen[VALID] ** 2).sum(0))
  masks, _ = checkpoints.read_masks(wanda[0] / "masks.safetensors")
  for name in ("query", "key", "value"):
    w_OI = (
      getattr(model.encoder.layer[0].attention.self, name)
      .weight.detach()
      .numpy()
    )
    score_OI = np.abs(w_OI) * norm_I
    keep_OI = score_OI > np.sort(score_OI, axis=1)[:, [15]]
    np.testing.assert_array_equal(masks["attention"][name][0], keep_OI.T)


def test_what_stands_in_the_padding_changes_nothing(source, wanda, tmp_path):
  prune(source, tmp_path / "b", tokens=np.where(VALID, TOKENS, 5))
  masks, _ = checkpoints.read_masks(wanda[0] / "masks.safetensors")
  other, _ = checkpoints.read_masks(tmp_path / "b" / "masks.safetensors")
  for group, kernel in encoder.KERNELS:
    np.testing.assert_array_equal(masks[group][kernel], other[group][kernel])


def test_zeros_are_where_the_masks_say_and_nothing_else_changed(source, wanda):
  out, log = wanda
  assert [row["sparsity"] for row in log] == [0.5] * 3
  assert all(0 < row["layer_error"] < 1 for row in log)
  masks, _ = checkpoints.read_masks(out / "masks.safetensors", source.config)
  (_, old), (_, new) = load(source.folder), load(out)
  for group, kernel in encoder.KERNELS:
    keep = masks[group][kernel]
    np.testing.assert_array_equal(
      new["layers"][group][kernel].pop("kernel"),
      np.where(keep, old["layers"][group][kernel].pop("kernel"), 0),
    )
    assert (keep.sum(axis=1) == keep.shape[1] // 2).all()
  chex.assert_trees_all_equal(old, new)


def test_stock_computes_the_same_pruned_model(wanda):
  model, said = transformers.BertModel.from_pretrained(
    wanda[0], output_loading_info=True, attn_implementation="eager"
  )
  assert not said["missing_keys"] and not said["unexpected_keys"]
  config, params = load(wanda[0])
  got, _ = forward(
    config, params, jnp.asarray(TOKENS), valid_BT=jnp.asarray(VALID)
  )
  want = hf_encoders.hidden(model.eval(), TOKENS, VALID)
  np.testing.assert_allclose(np.asarray(got)[VALID], want[VALID], atol=1e-5)
  assert checkpoints.read_pooling(wanda[0]).kind == "mean"


def test_a_killed_run_goes_on_to_the_same_bits(source, wanda, tmp_path):
  def kill(row):
    if row["layer"] == 1:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prune(source, tmp_path / "a", on_layer=kill)
  assert not (tmp_path / "a").exists()
  seen = []
  prune(source, tmp_path / "a", on_layer=lambda row: seen.append(row["layer"]))
  assert seen == [2]
  for path in wanda[0].glob("*.safetensors"):
    assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


@pytest.mark.slow
def test_sparsegpt_loses_less_than_magnitude(source, tmp_path):
  errors = {
    method: [
      row["layer_error"]
      for row in prune(
        source,
        tmp_path / method,
        method,
        Unstructured(sparsity=0.5, group=group),
      )
    ]
    for method, group in (("magnitude", "output"), ("sparsegpt", "matrix"))
  }
  assert errors["sparsegpt"][0] < errors["magnitude"][0]


def test_n_of_m(source, tmp_path):
  prune(source, tmp_path / "a", "magnitude", NofM(keep=1, of=4), tokens=None)
  _, params = load(tmp_path / "a")
  for group, kernel in encoder.KERNELS:
    w_LIO = np.asarray(params["layers"][group][kernel]["kernel"])
    kept = (w_LIO.reshape(3, -1, 4, w_LIO.shape[2]) != 0).sum(axis=2)
    assert (kept == 1).all()


def test_scores_are_the_cosines_of_valid_tokens(source):
  scores = sublayers.score_sublayers(
    source, PaddedTokens(ids=TOKENS, valid=VALID), memory=Memory(micro_batch=2)
  )
  config, params = load(source.folder)
  _, tape = forward(
    config,
    params,
    jnp.asarray(TOKENS),
    valid_BT=jnp.asarray(VALID),
    observe=lambda tape: {
      k: v for k, v in tape.items() if k.startswith("residual")
    },
  )
  for name, ends in (
    ("attention", ("in", "mid")),
    ("mlp", ("mid", "out")),
    ("block", ("in", "out")),
  ):
    x, y = (np.asarray(tape[f"residual_{end}"], np.float64) for end in ends)
    cos = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    np.testing.assert_allclose(
      scores[name], [c[VALID].mean() for c in cos], atol=1e-6
    )


def test_a_dropped_sublayer_is_a_closed_gate_in_stock_too(source, tmp_path):
  chosen = drops.Drops(
    num_layers=3, order=(("attention", 1), ("mlp", 0), ("mlp", 1))
  )
  sublayers.prune_drops(source, tmp_path / "a", chosen, {})
  model = transformers.BertModel.from_pretrained(
    tmp_path / "a", attn_implementation="eager"
  ).eval()
  # A bias that stayed would be a constant added to every token.
  assert not model.encoder.layer[1].attention.output.dense.bias.any()
  config, params = load(source.folder)
  got, _ = forward(
    config,
    params,
    jnp.asarray(TOKENS),
    valid_BT=jnp.asarray(VALID),
    gates=Gates(**chosen.gates),
  )
  want = hf_encoders.hidden(model, TOKENS, VALID)
  np.testing.assert_allclose(np.asarray(got)[VALID], want[VALID], atol=1e-5)
  dense = transformers.BertModel.from_pretrained(source.folder).eval()
  assert np.abs(hf_encoders.hidden(dense, TOKENS, VALID) - want).max() > 0.1
  again = checkpoints.open_checkpoint(tmp_path / "a", EncoderConfig)
  assert checkpoints.read_drops(again) == {"attention": (1,), "mlp": (0, 1)}


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(method="awq"), "awq.*not for encoders"),
    (dict(method="neuron"), "neuron.*not for encoders"),
    (dict(tokens=None), "wanda looks at calibration"),
    (dict(pattern=NofM(keep=2, of=5)), "2:5 does not divide the 32 inputs"),
    (
      dict(
        method="magnitude", pattern=Unstructured(sparsity=0.5, group="global")
      ),
      "group global",
    ),
    (dict(tokens=TOKENS + 60), "the vocabulary has 61"),
    (dict(tokens=np.zeros((2, 41), int)), "context of 40"),
    (dict(valid=VALID[:, :3]), r"valid has shape \(6, 3\)"),
    (dict(valid=VALID & (np.arange(6) > 0)[:, None]), "every sequence"),
  ],
)
def test_bad_jobs_are_refused_before_any_work(source, tmp_path, options, words):
  with pytest.raises(ValueError, match=words):
    prune(source, tmp_path / "a", **options)
  assert not list(tmp_path.iterdir())


def test_a_decoder_is_refused(shared, tmp_path):
  decoder = checkpoints.open_checkpoint(shared / "weights" / "stories260K")
  with pytest.raises(ValueError, match="is no encoder"):
    prune(decoder, tmp_path / "a")


def test_an_encoder_is_pruned_on_one_device(source, tmp_path):
  mesh = devices.make_mesh({"data": 2, "model": 4})
  with pytest.raises(ValueError, match="one device"):
    prune(source, tmp_path / "a", memory=Memory(mesh=mesh))
