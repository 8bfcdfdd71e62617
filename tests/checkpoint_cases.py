"""Small Hugging Face folders, and what stock reads in them."""

import pathlib

import jax
import numpy as np
import safetensors
import safetensors.numpy
import torch
import transformers

D, F, V, L = 24, 40, 48, 3
COMMON = dict(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=F,
  num_hidden_layers=L,
  num_attention_heads=4,
  max_position_embeddings=64,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)


# Case: (transformers class stem, config, torch dtype, shard size).
# "square" has F = D = N*H, where a forgotten transpose keeps every shape.
CASES = {
  "llama_tied": (
    "Llama",
    dict(num_key_value_heads=2, tie_word_embeddings=True),
    "float32",
    "1GB",
  ),
  "llama_bias_untied_sharded": (
    "Llama",
    dict(
      num_key_value_heads=4,
      head_dim=10,
      attention_bias=True,
      mlp_bias=True,
      tie_word_embeddings=False,
    ),
    "float32",
    "9KB",
  ),
  "llama_square": (
    "Llama",
    dict(num_key_value_heads=4, intermediate_size=D, tie_word_embeddings=False),
    "float32",
    "1GB",
  ),
  "mistral_f16": (
    "Mistral",
    dict(num_key_value_heads=1, sliding_window=None),
    "float16",
    "1GB",
  ),
  "qwen2_bf16_sharded": (
    "Qwen2",
    dict(num_key_value_heads=2, tie_word_embeddings=True),
    "bfloat16",
    "9KB",
  ),
  "qwen3_bf16": (
    "Qwen3",
    dict(num_key_value_heads=2, head_dim=10, tie_word_embeddings=False),
    "bfloat16",
    "1GB",
  ),
}


def folders_of(tmp_path_factory):
  """Build each case once; tests must not write into the folder."""
  folders = {}

  def build(case: str) -> pathlib.Path:
    if case not in folders:
      folders[case] = tmp_path_factory.mktemp(case)
      stem, options, dtype, shard = CASES[case]
      config = getattr(transformers, f"{stem}Config")(**{**COMMON, **options})
      torch.manual_seed(len(case))
      model = getattr(transformers, f"{stem}ForCausalLM")(config)
      with torch.no_grad():
        # Biases start at 0 and scales at 1, which would hide a mix-up.
        for name, parameter in model.named_parameters():
          parameter.normal_(float("norm" in name), 0.2)
      model.to(getattr(torch, dtype)).save_pretrained(
        folders[case], max_shard_size=shard
      )
      (folders[case] / "tokenizer.json").write_text('{"é": 1}', "utf-8")
      (folders[case] / "chat_template.jinja").write_text("{{ x }}")
    return folders[case]

  return build


def raw_tensors(folder) -> dict[str, tuple[str, tuple, bytes]]:
  """Everything in the safetensors of a folder, read by the stock library."""
  result = {}
  for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
    with safetensors.safe_open(path, "numpy") as file:
      for name in file.keys():
        array = file.get_tensor(name)
        result[name] = (str(array.dtype), array.shape, array.tobytes())
  return result


def tree_bits(tree):
  return jax.tree.map(
    lambda a: (str(a.dtype), a.shape, np.asarray(a).tobytes()), tree
  )


def hf_logits(folder, tokens_BT) -> np.ndarray:
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    output_loading_info=True,
    dtype=torch.float32,
    attn_implementation="eager",
  )
  for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not info[key], (key, info[key])
  with torch.no_grad():
    return model(torch.tensor(tokens_BT)).logits.numpy()


TOKENS_BT = np.random.default_rng(0).integers(3, V, (2, 9))
