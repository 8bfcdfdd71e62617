"""Changed files of a model: what stock makes of them, or one clear line."""

import json
import os
import pathlib
import shutil

import numpy as np
import safetensors.numpy
from mutation_judges import World

from jaxprune import calibration, checkpoints
from jaxprune.checkpoints import folders, shards
from jaxprune.models import ModelConfig


def make_worlds(home: pathlib.Path) -> list[World]:
  """Write the inputs.

  Args:
    home: a folder; `model` and `masks` are made in it.
  """
  model = save_model(home / "model")
  return [
    _config_world(model),
    _weights_world(model),
    _tokenizer_world(model, ("tokenizer.json", "tokenizer_config.json")),
    _special_world(model, home / "special"),
    _chat_world(model, home / "chat"),
    _masks_world(home / "masks"),
  ]


def save_model(folder: pathlib.Path) -> pathlib.Path:
  """A tiny Llama in two shards, with a tokenizer."""
  import faults
  import tokenizers

  faults.save_model(
    folder.parent,
    folder=folder.name,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_size=16,
    vocab_size=320,
    shard="20KB",
  )
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(["the cat sat on the mat " * 3] * 9, trainer)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
  )
  tokenizer.save(os.fspath(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
      }
    )
  )
  return folder


def _config_world(model) -> World:
  plain = checkpoints.open_checkpoint(model).config

  def judge(file):
    source = checkpoints.open_checkpoint(model)
    config, _ = checkpoints.load_params(source)
    if config == plain:
      return None
    return _unlike_stock(model, config)

  return World(
    name="config",
    files=(model / "config.json", model / "generation_config.json"),
    judge=judge,
  )


def _unlike_stock(model: pathlib.Path, config: ModelConfig) -> str | None:
  """In what a configuration differs from the reading of stock."""
  import hf_models
  import test_config_properties
  import transformers

  from jaxprune.models import rope

  fields = json.loads((model / "config.json").read_bytes())
  theirs = transformers.AutoConfig.for_model(
    fields.pop("model_type"),
    **test_config_properties.as_strict("llama", fields),
  )
  ends = transformers.GenerationConfig.from_pretrained(model).eos_token_id
  ends = ends if isinstance(ends, list) else [ends]
  pairs = {
    "layers": (config.num_layers, theirs.num_hidden_layers),
    "embed": (config.embed_dim, theirs.hidden_size),
    "mlp": (config.mlp_dim, theirs.intermediate_size),
    "heads": (config.num_heads, theirs.num_attention_heads),
    "kv": (config.num_kv_heads, theirs.num_key_value_heads),
    "head": (config.head_dim, theirs.head_dim),
    "vocabulary": (config.vocab_size, theirs.vocab_size),
    "positions": (config.max_positions, theirs.max_position_embeddings),
    "eps": (config.norm_eps, theirs.rms_norm_eps),
    "tied": (config.tie_embeddings, theirs.tie_word_embeddings),
    "bias": (config.qkv_bias, theirs.attention_bias),
    "mlp bias": (config.mlp_bias, theirs.mlp_bias),
    "ends": (
      config.eos_ids,
      tuple(e for e in ends if e is not None and e >= 0),
    ),
  }
  wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
  if wrong:
    return f"not as stock: {wrong}"
  if theirs.hidden_act not in (config.activation, "silu", "swish"):
    from jaxprune.models.activations import STOCK_NAMES

    if STOCK_NAMES[theirs.hidden_act] != config.activation:
      return f"not as stock: {config.activation}, {theirs.hidden_act}"
  rotary = hf_models.stock_rotary(theirs)
  ours = rope.inv_freq(config, 1, config.rope)
  if not np.allclose(ours, rotary.inv_freq.numpy(), rtol=2e-6):
    return "another RoPE than stock"
  return None


def _weights_world(model) -> World:
  index = model / folders.INDEX

  def judge(file):
    source = checkpoints.open_checkpoint(model)
    checkpoints.load_params(source)
    listed = json.loads(index.read_bytes())["weight_map"]
    stock = {}
    for shard in set(listed.values()):
      stock |= safetensors.numpy.load_file(model / shard)
    for name, tensor in source.tensors.items():
      mine = shards.view(tensor)
      theirs = stock[name]
      if mine.dtype != theirs.dtype or mine.tobytes() != theirs.tobytes():
        return f"{name} is not what stock reads"
      if not np.isfinite(mine.astype(np.float32)).all():
        return f"{name} is not finite"
    return None

  return World(
    name="weights",
    files=(index, *sorted(model.glob("*.safetensors"))),
    judge=judge,
  )


PROBES = ("the cat", "", " a  b\n", "<s>x</s>", "é漢😀\0", "THE MAT" * 9)


def _tokenizer_world(model, names, world="tokenizer") -> World:
  def read():
    tokenizer = calibration.load_tokenizer(model)
    special = calibration.special_tokens(model, tokenizer)
    calibration.adds_bos(tokenizer)
    return [calibration.encode(tokenizer, text) for text in PROBES], special

  plain, counted = read(), [0]

  def judge(file):
    found = read()
    counted[0] += 1
    # Stock is slow: of those that changed nothing, one in ten is compared.
    if found == plain and counted[0] % 10:
      return None
    return _unlike_stock_ids(model, found)

  return World(
    name=world, files=tuple(model / name for name in names), judge=judge
  )


def _special_world(model, folder) -> World:
  """The files that name special tokens beside the tokenizer's own."""
  shutil.copytree(model, folder)
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
  )
  (folder / "special_tokens_map.json").write_text(
    json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}})
  )
  (folder / "added_tokens.json").write_text(json.dumps({"<s>": 0, "</s>": 1}))
  names = ("special_tokens_map.json", "added_tokens.json")
  return _tokenizer_world(folder, names, "special tokens")


_TEMPLATE = (
  "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n"
  "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def _chat_world(model, folder) -> World:
  """A chat template, in a file of its own and in tokenizer_config.json."""
  from jaxprune.evaluation import chat

  both = folder / "both"
  for place in (folder, both):
    shutil.copytree(model, place)
    fields = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "bos_token": "<s>",
      "eos_token": "</s>",
      "chat_template": _TEMPLATE,
    }
    if place == folder:
      del fields["chat_template"]
      (place / "chat_template.jinja").write_text(_TEMPLATE)
    (place / "tokenizer_config.json").write_text(json.dumps(fields))

  def judge(file):
    render = chat.template(file.parent, "auto")
    if render is None:
      return None
    text = render("the cat")
    return None if isinstance(text, str) else f"a text that is {text!r}"

  return World(
    name="chat",
    files=(folder / "chat_template.jinja", both / "tokenizer_config.json"),
    judge=judge,
  )


def _unlike_stock_ids(model, found) -> str | None:
  import transformers

  try:
    stock = transformers.AutoTokenizer.from_pretrained(model)
    ids = [stock(text)["input_ids"] for text in PROBES]
    ends = stock.bos_token_id, stock.eos_token_id
  except BaseException:  # noqa: BLE001
    return None  # stock reads less than we do; there is nothing to compare with
  ours, special = found
  if ours != ids:
    return f"ids {ours} are {ids} in stock"
  if (special.bos_id, special.eos_id) != ends:
    return f"{special} is {ends} in stock"
  return None


def _masks_world(folder) -> World:
  draw = np.random.default_rng(0)
  masks = {"mlp": {"up": draw.random((2, 4, 6)) < 0.5}}
  file = folder / "masks.safetensors"
  folder.mkdir()
  checkpoints.write_masks(file, masks, {"method": "wanda"})

  def judge(path):
    found, _ = checkpoints.read_masks(file)
    same = np.array_equal(found["mlp"]["up"], masks["mlp"]["up"])
    return None if same else "other masks"

  return World(name="masks", files=(file,), judge=judge)
