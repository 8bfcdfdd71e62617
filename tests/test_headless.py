"""Checkpoints without an output head, as embedding models are published."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxprune import checkpoints
from jaxprune.calibration.prompts import left_pad
from jaxprune.checkpoints import orbax_folder
from jaxprune.evaluation import embeddings
from jaxprune.models import final_norm, forward, generate, unembed
from jaxprune.pruning.change import Change
from jaxprune.pruning.patterns import NofM
from jaxprune.studies import inputs
from jaxprune.studies import prune as prune_lib

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
  vocab_size=64,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=64,
  head_dim=8,
  initializer_range=0.3,
)
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
TOKENS = np.random.default_rng(0).integers(3, 64, size=(4, 12))


def save(folder, family, kind="Model", **fields):
  torch.manual_seed(1)
  known = {} if family == "Qwen2" else {"head_dim": 8}
  sizes = {key: size for key, size in SIZES.items() if key != "head_dim"}
  config = getattr(transformers, f"{family}Config")(**sizes | known | fields)
  getattr(transformers, family + kind)(config).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
  return save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  return save(tmp_path_factory.mktemp("llama"), "Llama")


def stock_h(folder, tokens, valid=None):
  model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
  mask = None if valid is None else torch.tensor(valid, dtype=torch.long)
  with torch.no_grad():
    out = model(torch.tensor(tokens), attention_mask=mask)
  return out.last_hidden_state.numpy()


def our_h(folder):
  config, params = checkpoints.load_params(folder)
  return np.asarray(_read(config, params)[0])


@functools.partial(jax.jit, static_argnums=0)
def _read(config, params):
  """What the head reads of TOKENS, and the logits where there is a head."""
  x_BTD, _ = forward(config, params, jnp.asarray(TOKENS))
  h_BTD = final_norm(config, params, x_BTD)
  return h_BTD, unembed(config, params, x_BTD) if config.has_head else None


def rename(folder, target, name):
  """A copy of a folder with other names of tensors."""
  target.mkdir()
  for file in ("config.json", "model.safetensors"):
    (target / file).write_bytes((folder / file).read_bytes())
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  safetensors.numpy.save_file(
    {name(key): tensor for key, tensor in tensors.items()},
    target / "model.safetensors",
    metadata={"format": "pt"},
  )
  return target


def test_hidden_states_are_those_of_stock(folder):
  source = checkpoints.open_checkpoint(folder)
  assert not source.config.has_head and source.config.bare_names
  np.testing.assert_allclose(
    our_h(folder), stock_h(folder, TOKENS), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("padded", ["left", "right"])
def test_pooled_texts_are_those_of_stock(llama, padded):
  """Whatever side stock is padded on; ours stand at the left."""
  config, params = checkpoints.load_params(llama)
  texts = [row[:length].tolist() for row, length in zip(TOKENS, (12, 5, 9, 1))]
  tokens, valid = left_pad(texts, 0)
  if padded == "right":
    tokens = np.stack([np.roll(t, v.sum()) for t, v in zip(tokens, valid)])
    valid = np.stack([np.sort(v)[::-1] for v in valid])
  h_BTD = stock_h(llama, tokens, valid)
  expected = {
    "last": [h_TD[v][-1] for h_TD, v in zip(h_BTD, valid)],
    "mean": [h_TD[v].mean(axis=0) for h_TD, v in zip(h_BTD, valid)],
  }
  for pooling, wanted in expected.items():
    got = embeddings.embed_tokens(
      config, params, texts, pooling=pooling, normalise=False
    )
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
  "change",
  [
    Change(method="wanda", pattern=NofM(keep=2, of=4)),
    Change(method="drop_attention", drop_count=1),
  ],
)
def test_pruned_folders_keep_the_layout(llama, tmp_path, change):
  source = inputs.open_model(str(llama), logits=False)
  prune_lib.check(source.config, change, tokens=True)
  prune_lib.prune(source, tmp_path / "out", change, TOKENS)
  names = [
    sorted(safetensors.numpy.load_file(path / "model.safetensors"))
    for path in (llama, tmp_path / "out")
  ]
  assert names[0] == names[1] and "layers.0.mlp.up_proj.weight" in names[0]
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  assert written["architectures"] == ["LlamaModel"]
  got = our_h(tmp_path / "out")
  np.testing.assert_allclose(
    got, stock_h(tmp_path / "out", TOKENS), rtol=1e-4, atol=1e-5
  )
  assert abs(got - our_h(llama)).max() > 0.01


def test_what_needs_logits_says_that_there_is_no_head(llama):
  source = checkpoints.open_checkpoint(llama)
  config, params = checkpoints.load_params(source)
  with pytest.raises(ValueError, match=f"{llama}: has no output head"):
    inputs.open_model(str(llama))
  with pytest.raises(ValueError, match="no output head"):
    unembed(config, params, jnp.zeros((1, 16)))
  with pytest.raises(ValueError, match="no output head"):
    generate(config, params, TOKENS, max_new_tokens=1)
  for change in (
    Change(method="kl_attention", drop_count=1),
    Change(
      method="wanda", pattern=inputs.Unstructured(sparsity=0.5), allocation="kl"
    ),
  ):
    with pytest.raises(ValueError, match="no output head"):
      prune_lib.check(config, change, tokens=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_a_head_is_read_under_either_naming(tmp_path, tied, bare):
  folder = save(
    tmp_path / "a", "Llama", "ForCausalLM", tie_word_embeddings=tied
  )
  if bare:
    folder = rename(folder, tmp_path / "b", lambda n: n.removeprefix("model."))
  config, params = checkpoints.load_params(folder)
  assert config.has_head and config.bare_names == bare
  _, z_BTV = _read(config, params)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  with torch.no_grad():
    expected = model(torch.tensor(TOKENS)).logits.numpy()
  np.testing.assert_allclose(z_BTV, expected, rtol=1e-4, atol=1e-4)


def test_published_embedding_models_name_a_causal_architecture(llama, tmp_path):
  """Weights without prefix and head, whatever `architectures` says."""
  folder = rename(llama, tmp_path / "a", lambda name: name)
  path = folder / "config.json"
  fields = json.loads(path.read_text()) | {
    "architectures": ["LlamaForCausalLM"]
  }
  path.write_text(json.dumps(fields))
  assert not checkpoints.open_checkpoint(folder).config.has_head
  # With the prefix the head is missing, unless the architecture has none.
  prefixed = rename(folder, tmp_path / "b", "model.{}".format)
  with pytest.raises(ValueError, match="'lm_head.weight' missing"):
    checkpoints.open_checkpoint(prefixed)
  path = prefixed / "config.json"
  path.write_text(json.dumps(fields | {"architectures": ["LlamaModel"]}))
  config = checkpoints.open_checkpoint(prefixed).config
  assert not config.has_head and not config.bare_names


@pytest.mark.parametrize("kind", ["Model", "ForCausalLM"])
def test_a_mix_of_both_namings_is_refused(tmp_path, kind):
  folder = save(tmp_path / "a", "Llama", kind)

  def other(name):
    if ".1." not in name:
      return name
    return f"model.{name}" if kind == "Model" else name.removeprefix("model.")

  mixed = rename(folder, tmp_path / "b", other)
  with pytest.raises(ValueError, match="with and without 'model.'") as caught:
    checkpoints.open_checkpoint(mixed)
  assert "\n" not in str(caught.value)


def test_a_head_that_is_missing_is_still_an_error(tmp_path):
  folder = save(tmp_path / "a", "Llama", "ForCausalLM")
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  del tensors["lm_head.weight"]
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  with pytest.raises(ValueError, match="'lm_head.weight' missing"):
    checkpoints.open_checkpoint(folder)


def test_a_saved_tree_is_read_again(llama, tmp_path):
  source = checkpoints.open_checkpoint(llama)
  _, params = checkpoints.load_params(source)
  checkpoints.save_params(tmp_path / "out", params, source)
  got, expected = (
    safetensors.numpy.load_file(path / "model.safetensors")
    for path in (tmp_path / "out", llama)
  )
  assert got.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(got[name], tensor)


def test_conversion_to_orbax_and_back_is_bit_for_bit(llama, tmp_path):
  source = checkpoints.open_checkpoint(llama)
  orbax_folder.write_orbax(source, tmp_path / "orbax")
  opened = orbax_folder.open_orbax(tmp_path / "orbax")
  assert not opened.config.has_head and opened.config.bare_names
  out = orbax_folder.write_huggingface(opened, tmp_path / "hf")
  got, expected = (
    safetensors.numpy.load_file(path / "model.safetensors")
    for path in (out, llama)
  )
  assert got.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(got[name], tensor)
