"""Tiny random BERTs of stock transformers, with tokenizer and modules.json."""

import json

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

WORDS = (
  "[PAD] [UNK] [CLS] [SEP] wing flow heat lift drag shock layer plate jet"
  " cone body speed gas wave tip span ##s ##ing"
).split()
SMALL = dict(
  vocab_size=61,
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  max_position_embeddings=40,
  type_vocab_size=2,
  hidden_act="gelu",
  pad_token_id=0,
  attn_implementation="eager",
)


def build(*, seed=0, pooler=True, **overrides):
  """A stock BertModel in eval mode in which every parameter is random."""
  config = transformers.BertConfig(**{**SMALL, **overrides})
  model = transformers.BertModel(config, add_pooling_layer=pooler).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if name.endswith("LayerNorm.weight"):
        parameter.copy_(1 + 0.2 * noise)
      elif name.endswith("bias"):
        parameter.copy_(0.2 * noise)
      else:
        parameter.copy_(noise / parameter.shape[-1] ** 0.5)
  return model


def save(folder, model=None, pooling="mean", normalise=True):
  """A folder as sentence-transformers writes it; returns the model."""
  model = model or build()
  model.save_pretrained(folder)
  tokenizer().save(str(folder / "tokenizer.json"))
  kinds = ["Transformer", "Pooling", *["Normalize"] * normalise]
  (folder / "modules.json").write_text(
    json.dumps(
      [
        {"idx": i, "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
      ]
    )
  )
  (folder / "1_Pooling").mkdir()
  (folder / "1_Pooling" / "config.json").write_text(
    json.dumps(
      {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": pooling == "max",
      }
    )
  )
  return model


def tokenizer():
  """A WordPiece of WORDS that truncates and pads, as shipped ones do."""
  made = tokenizers.Tokenizer(
    models.WordPiece(
      {word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"
    )
  )
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  made.enable_padding(length=12)
  made.enable_truncation(12)
  return made


def hidden(model, tokens, valid=None, types=None):
  """Last hidden state of a stock model, as numpy."""
  options = {}
  if valid is not None:
    options["attention_mask"] = torch.tensor(valid).long()
  if types is not None:
    options["token_type_ids"] = torch.tensor(types)
  with torch.no_grad():
    return model(torch.tensor(tokens), **options).last_hidden_state.numpy()
