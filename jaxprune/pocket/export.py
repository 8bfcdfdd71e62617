"""How is the trained model shipped: a Hugging Face folder, made from nothing.

`jaxprune.checkpoints.save_params` rewrites a checkpoint that exists; here is
the first one: bfloat16 weights in one file, tokenizer, configurations and a
model card. Stock transformers loads it.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers

from jaxprune import files, staging
from jaxprune.checkpoints import names, shards
from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.pocket import tokenizer as tokenizer_lib


def write_model(
  folder: str | os.PathLike,
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  card: str,
) -> pathlib.Path:
  """Write the model folder, whole or not at all.

  Args:
    folder: the final place; an older model there is replaced.
    config: of family 'llama', default RoPE, tied embeddings.
    params: any float dtype; written as bfloat16.
    tokenizer: with the ids of `jaxprune.pocket.tokenizer`.
    card: text of README.md.

  Returns:
    The folder.
  """
  stage = staging.stage(folder)
  staging.begin(stage, {"made_from": "pocket"}, resume=False)
  work = stage.new
  work.mkdir()
  shards.write_shard(
    work / "model.safetensors", _tensors(config, params), {"format": "pt"}
  )
  ids = {
    "bos_token_id": tokenizer_lib.BOS,
    "eos_token_id": tokenizer_lib.EOS,
    "pad_token_id": tokenizer_lib.PAD,
  }
  files.atomic_write_json(work / "config.json", {**_config(config), **ids})
  files.atomic_write_json(
    work / "generation_config.json",
    {**ids, "do_sample": False, "max_new_tokens": 64},
  )
  pad, bos, eos = tokenizer_lib.SPECIAL
  files.atomic_write_json(
    work / "tokenizer_config.json",
    {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "bos_token": bos,
      "eos_token": eos,
      "pad_token": pad,
      "model_max_length": config.max_positions,
      "clean_up_tokenization_spaces": False,
    },
  )
  files.atomic_write_text(work / "tokenizer.json", tokenizer.to_str())
  files.atomic_write_text(work / "README.md", card)
  staging.publish(stage)
  return stage.folder


def _tensors(config, params) -> dict[str, np.ndarray]:
  """Tensors under the names and in the layout of the file."""
  leaves, tensors = names.flatten(params), {}
  for row in names.outer_rows(config):
    tensors[row.name] = _tensor(row, leaves[row.path])
  for row in names.layer_rows(config):
    stacked = np.asarray(leaves[f"layers/{row.path}"])
    for index in range(config.num_layers):
      tensors[row.name.format(index)] = _tensor(row, stacked[index])
  return tensors


def _tensor(row, leaf) -> np.ndarray:
  array = np.asarray(leaf)
  return np.ascontiguousarray(
    array.T if row.transpose else array, ml_dtypes.bfloat16
  )


def _config(config: ModelConfig) -> dict[str, Any]:
  """config.json, in the layout that transformers 4 and 5 both read."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": config.qkv_bias,
    "dtype": "bfloat16",
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "max_position_embeddings": config.max_positions,
    "mlp_bias": config.mlp_bias,
    "num_attention_heads": config.num_heads,
    "num_hidden_layers": config.num_layers,
    "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.norm_eps,
    "rope_parameters": {
      "rope_theta": config.rope.theta,
      "rope_type": config.rope.kind,
    },
    "rope_theta": config.rope.theta,
    "tie_word_embeddings": config.tie_embeddings,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": config.vocab_size,
  }


def model_card(
  train: Mapping[str, Any],
  world_seed: int,
  num_params: int,
  scores: Mapping[str, float],
  items_hash: str,
  minutes: float | None,
) -> str:
  """The text of README.md.

  Args:
    train: fields of the `TrainConfig`.
    world_seed: which world it knows.
    num_params: in all.
    scores: from `scores.score` on the test split, of the bfloat16 weights.
    items_hash: from `tasks.tasks_hash`.
    minutes: wall time of training, None when it was resumed.
  """
  table = "\n".join(
    f"| {name} | {value:.3f} |" for name, value in scores.items()
  )
  wall = "" if minutes is None else f" Training took {minutes:.0f} minutes."
  settings = json.dumps(dict(train), indent=2)
  prompt_weight = train["layout"]["prompt_weight"]
  return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# pocket

A laboratory model for jaxprune, trained from nothing by
`python -m experiments.train_pocket --seed={train["seed"]}
--world_seed={world_seed}`.{wall} It has {num_params:,} parameters, knows an
invented world and does small sums. It is made to see what pruning does to
choosing, retrieving and generating within minutes on a CPU; it says nothing
about large models, and nothing it says is true.

## What it was trained on

Text made by code from the world's seed: facts in several phrasings, questions,
all facts of an entity, chains of facts, word problems with written-out steps,
short stories. The objective is next-token prediction (weight 1 for what can be
worked out, {prompt_weight} inside prompts) plus a light contrastive
term: InfoNCE at T = {train["contrastive_temperature"]} on mean-pooled final
hidden states of question and passage pairs, weight
{train["contrastive_weight"]}. The embedding is therefore trained to retrieve;
it did not emerge from language modelling alone.

## What is held out

Of five phrasings of each question, and of four statements of each fact, the
test split has one that was never seen with that fact (it was seen with other
facts; a passage whose statement equals a step of a chain is searched but not
asked for); of chains of facts, starting numbers with their changes, and
stories, 15 % of the combinations. Single steps of arithmetic are not held out.

## Scores on the test split

bfloat16 weights, float32 arithmetic, greedy decoding; choose is accuracy of
the likeliest of four options, retrieve is nDCG@10 with one relevant passage,
generate is the fraction of exactly right answers. `stories` (four options,
answer in the prompt) was meant to be a part of choose and is kept apart because
the first trained model was at chance on it; read choose as recall of facts.
Items: sha256 `{items_hash}`.

| task | score |
|---|---|
{table}

## Settings

```json
{settings}
```
"""
