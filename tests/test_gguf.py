"""GGUF files: weights, configuration and tokenizer as stock reads them."""

import json
import os
import pathlib
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import checkpoints
from jaxprune.checkpoints import gguf_config, gguf_file, gguf_folder
from jaxprune.models import ModelConfig
from jaxprune.studies import inputs
from tests import gguf_models, hf_models, scripts

CASES = {
  "llama": ("llama", dict(tie_word_embeddings=True)),
  "llama_untied": ("llama", dict(tie_word_embeddings=False)),
  "qwen2": ("qwen2", dict(tie_word_embeddings=True)),
  # Stock does not read the width of a head from such a file.
  "qwen3": ("qwen3", dict(head_dim=128, tie_word_embeddings=False)),
  # Of queries stock takes the scale from its default, the width 256.
  "gemma2": ("gemma2", dict(head_dim=256, num_attention_heads=1)),
  "gemma3": ("gemma3_text", dict(head_dim=256, num_attention_heads=1)),
}


METADATA = {
  "gemma2": {
    "gemma2.attn_logit_softcapping": 50.0,
    "gemma2.final_logit_softcapping": 30.0,
  }
}
BIASES = dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Build each case once: (file, the folder made of it in float32)."""
  built = {}

  def build(case):
    if case not in built:
      family, options = CASES[case]
      if family.startswith("gemma"):
        options = options | dict(num_key_value_heads=1)
      model, _, _ = hf_models.build(family, **options)
      home = tmp_path_factory.mktemp(case)
      arch = family.removesuffix("_text")
      file = gguf_models.write(
        home / "model.gguf", model, arch, metadata=METADATA.get(arch)
      )
      built[case] = file, gguf_folder.write_gguf(file, home / "hf")
    return built[case]

  return build


@pytest.mark.parametrize("case", CASES)
def test_weights_and_config_are_those_of_stock(made, case):
  """Bit for bit, from five ways of packing."""
  file, folder = made(case)
  stock = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  )
  ours = transformers.AutoModelForCausalLM.from_pretrained(folder)
  expected = stock.state_dict()
  found = ours.state_dict()
  assert found.keys() == expected.keys()
  for name, tensor in found.items():
    assert tensor.dtype == torch.float32
    assert tensor.equal(expected[name]), name
  ignored = {"_name_or_path", "architectures", "dtype", "quantization_config"}
  ignored |= {"transformers_version"}
  read, wanted = ours.config.to_dict(), stock.config.to_dict()
  for key in wanted.keys() - ignored:
    assert read[key] == wanted[key], key
  assert checkpoints.open_checkpoint(folder).config.num_layers == 2


def test_the_rows_of_biases_are_put_back_too(tmp_path):
  """Stock loads no bias of a Llama from GGUF, so against the model itself."""
  model, config, params = hf_models.build("llama", **BIASES)
  file = gguf_models.write(tmp_path / "m.gguf", model, "llama")
  folder = gguf_folder.write_gguf(file, tmp_path / "hf")
  read, tree = checkpoints.load_params(folder)
  assert read.qkv_bias and read.output_bias and read.mlp_bias
  found, expected = tree["layers"]["attention"], params["layers"]["attention"]
  for name in ("query", "key", "value"):
    np.testing.assert_array_equal(found[name]["bias"], expected[name]["bias"])
    np.testing.assert_allclose(
      found[name]["kernel"],
      expected[name]["kernel"],
      atol=0.1,  # four bits
    )


def test_another_dtype_and_shards(made, tmp_path):
  file, folder = made("qwen2")
  out = gguf_folder.write_gguf(
    file, tmp_path / "out", dtype="bfloat16", shard_size=9_000
  )
  assert len(list(out.glob("model-*.safetensors"))) > 1
  assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
  source = checkpoints.open_checkpoint(out)
  assert {t.dtype for t in source.tensors.values()} == {"BF16"}
  wide = checkpoints.open_checkpoint(folder)
  for index in range(2):
    found = checkpoints.read_layer(source, index)["mlp"]["up"]["kernel"]
    exact = checkpoints.read_layer(wide, index)["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(found, exact.astype(found.dtype))


def test_a_file_is_opened_as_a_model(made, tmp_path, caplog):
  """Beside the file, once, and again when it is another one."""
  file = tmp_path / "m.gguf"
  shutil.copy(made("llama")[0], file)
  with caplog.at_level("INFO", logger="jaxprune"):
    source = inputs.open_model(str(file))
  assert source.folder == tmp_path / "m.gguf.converted"
  assert "dequantised to" in caplog.text and "no tokenizer" in caplog.text
  stamp = (source.folder / "model.safetensors").stat().st_mtime_ns
  caplog.clear()
  again = inputs.open_model(str(file))
  assert (again.folder / "model.safetensors").stat().st_mtime_ns == stamp
  assert not caplog.text
  shutil.copy(made("qwen2")[0], file)
  assert inputs.open_model(str(file)).config.family == "qwen2"
  assert sorted(os.listdir(tmp_path)) == ["m.gguf", "m.gguf.converted"]


def test_the_script(made, tmp_path):
  done = scripts.call(
    "convert", f"--model={made('llama')[0]}", f"--out={tmp_path}/out"
  )
  assert done.returncode == 0, done.stderr
  assert "dequantised" in done.stdout
  done = scripts.call(
    "convert",
    f"--model={made('llama')[0]}",
    f"--out={tmp_path}/x",
    "--mesh=model:8",
  )
  assert done.returncode == 1 and "leave them out" in done.stderr


# Headers


@given(data=st.data())
def test_a_cut_file_is_refused_in_one_line(made, data):
  file, _ = made("llama")
  raw = file.read_bytes()
  size = data.draw(
    st.one_of(st.integers(0, 4000), st.integers(0, len(raw) - 1))
  )
  cut = file.with_name("cut.gguf")
  cut.write_bytes(raw[:size])
  with pytest.raises(ValueError) as caught:
    gguf_file.read_header(cut)
  assert "cut.gguf" in str(caught.value) and "\n" not in str(caught.value)


@given(data=st.data())
def test_a_changed_header_is_read_or_refused(made, data):
  """At once, whatever it says of lengths and counts."""
  file, _ = made("llama")
  raw = bytearray(file.read_bytes())
  for _ in range(data.draw(st.integers(1, 4))):
    raw[data.draw(st.integers(4, 2500))] = data.draw(
      st.sampled_from([0, 1, 9, 127, 255])
    )
  changed = file.with_name("changed.gguf")
  changed.write_bytes(raw)
  try:
    gguf_file.read_header(changed)
  except ValueError as error:
    assert "\n" not in str(error)


def test_values_of_every_kind_are_read(tmp_path):
  path = tmp_path / "a.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  values = {
    "uint8": 3,
    "int8": -3,
    "uint16": 300,
    "int16": -300,
    "uint32": 1 << 31,
    "int32": -5,
    "float32": 0.5,
    "bool": True,
    "string": "é\n",
    "uint64": 1 << 40,
    "int64": -(1 << 40),
    "float64": 0.1,
  }
  for kind, value in values.items():
    getattr(writer, f"add_{kind}")(f"a.{kind}", value)
  writer.add_array("a.words", ["x", "", "日"])
  writer.add_array("a.numbers", [1, 2, 3])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  metadata, tensors = gguf_file.read_header(path)
  for kind, value in values.items():
    assert metadata[f"a.{kind}"] == value and not tensors
  assert metadata["a.words"] == ["x", "", "日"]
  assert metadata["a.numbers"] == [1, 2, 3]


WRONG = {
  "an architecture": (dict(arch="mamba"), "architecture 'mamba'.*llama"),
  "one of parts": (dict(metadata={"split.count": 3}), "one of 3 parts"),
  "an extra tensor": (
    dict(extra={"blk.0.x": np.ones(4, np.float32)}),
    "'blk.0.x' is extra",
  ),
  "partial RoPE": (
    dict(metadata={"qwen2.rope.dimension_count": 4}),
    "rope.dimension_count=4.*equal widths",
  ),
  "a kind of RoPE": (
    dict(metadata={"qwen2.rope.scaling.type": "su"}),
    "rope.scaling.type='su'",
  ),
  "divisors of RoPE": (
    dict(extra={"rope_freqs.weight": np.arange(4, dtype=np.float32)}),
    "not the RoPE scaling of Llama 3",
  ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_known_is_refused(tmp_path, kind):
  options, message = WRONG[kind]
  model, _, _ = hf_models.build("qwen2", num_hidden_layers=1)
  arch = options.pop("arch", "qwen2")
  file = gguf_models.write(tmp_path / "m.gguf", model, arch, **options)
  with pytest.raises(ValueError, match=message) as caught:
    gguf_folder.write_gguf(file, tmp_path / "out")
  assert "\n" not in str(caught.value) and "m.gguf" in str(caught.value)
  assert os.listdir(tmp_path) == ["m.gguf"]


SCALINGS = {
  "linear": (
    {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    {"rope_type": "linear", "factor": 4.0},
  ),
  "yarn": (
    {
      "llama.rope.scaling.type": "yarn",
      "llama.rope.scaling.factor": 4.0,
      "llama.rope.scaling.original_context_length": 16,
    },
    {
      "rope_type": "yarn",
      "factor": 4.0,
      "original_max_position_embeddings": 16,
    },
  ),
  "none": ({"llama.rope.scaling.type": "none"}, None),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_the_scaling_of_rope_is_read(kind):
  more, expected = SCALINGS[kind]
  hf = gguf_config.read_config("f", _metadata() | more, _SHAPES, None)
  assert hf["rope_scaling"] == expected
  assert ModelConfig.from_hf(hf).rope.kind == (
    "default" if expected is None else kind
  )


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_in_its_tensor(factor):
  """The divisors are those of stock transformers, to float32."""
  config = transformers.LlamaConfig(
    hidden_size=64,
    num_attention_heads=1,
    head_dim=64,
    rope_parameters=dict(
      rope_type="llama3",
      rope_theta=500000.0,
      factor=factor,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=8192,
    ),
  )
  rope = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
  scaled, _ = rope(config, "cpu")
  plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
  more = {"llama.rope.freq_base": 500000.0}
  hf = gguf_config.read_config(
    "f", _metadata() | more, _SHAPES, (plain / scaled.numpy()).astype("f4")
  )
  assert hf["rope_scaling"] == {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }


_SHAPES = {"token_embd.weight": (48, 64)}


def _metadata():
  return {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 32,
    "llama.block_count": 1,
    "llama.attention.head_count": 1,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
  }


# Real files


@pytest.mark.parametrize("name", ["smollm2", "qwen05"])
def test_a_layer_of_a_real_file(name):
  """Weights as transformers dequantised them, rounded to bfloat16."""
  home = pathlib.Path(os.environ.get("JAXPRUNE_REAL", ""))
  file = home / "gguf" / f"{name}.gguf"
  if not os.environ.get("JAXPRUNE_REAL") or not file.is_file():
    pytest.skip("JAXPRUNE_REAL is not set, or has no gguf/: no real GGUF files")
  metadata, tensors = gguf_file.read_header(file)
  source = checkpoints.open_checkpoint(home / name)
  layer = checkpoints.read_layer(source, 3)
  heads = {
    "attn_q": source.config.num_heads,
    "attn_k": source.config.num_kv_heads,
  }
  for gguf_name, (group, kernel) in {
    "attn_q": ("attention", "query"),
    "attn_k": ("attention", "key"),
    "attn_output": ("attention", "output"),
    "ffn_down": ("mlp", "down"),
  }.items():
    found = gguf_file.read_rows(tensors[f"blk.3.{gguf_name}.weight"])
    if gguf_name in heads and metadata["general.architecture"] == "llama":
      found = found.reshape(heads[gguf_name], -1, 2, found.shape[1])
      found = found.swapaxes(1, 2).reshape(-1, found.shape[-1])
    expected = layer[group][kernel]["kernel"]
    np.testing.assert_array_equal(found.T.astype(expected.dtype), expected)
