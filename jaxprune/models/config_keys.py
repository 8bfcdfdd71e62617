"""Which keys of a config.json are known without being read.

`config_fields` says what the four kinds of keys are. What the stock classes
declare is kept in stock_fields.json; here is what jaxprune knows beyond it.
"""

from typing import Any

# Declared, and without effect on hidden states and logits in inference.
INERT = frozenset(
  """
  architectures attention_dropout attention_probs_dropout_prob attn_pdrop
  chunk_size_feed_forward classifier_dropout dropout dtype embd_pdrop
  hidden_dropout hidden_dropout_prob id2label init_std initializer_range
  is_decoder label2id layerdrop output_hidden_states output_router_logits
  pretraining_tp problem_type reorder_and_upcast_attn resid_pdrop return_dict
  router_aux_loss_coef summary_activation summary_first_dropout
  summary_proj_to_labels summary_type summary_use_proj transformers_version
  use_cache
""".split()
)

# Undeclared, yet known: stock code takes these out before it looks for keys
# that it does not know, or jaxprune wrote them. The LLM-Drop lists are read
# with the weights (`checkpoints.drop_lists`).
KNOWN = frozenset(
  """
  _attn_implementation _commit_hash _name_or_path attn_implementation
  drop_attn_list drop_mlp_list experts_implementation jaxprune name_or_path
  num_labels output_attentions torch_dtype
""".split()
)

# Keys that ask for another arithmetic: why they are refused, the values that
# are not, and the keys. Stock code reads the first group though no class
# declares it; the second belongs to other families or to code outside
# transformers.
_REFUSALS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
  (
    "quantized weights are not read: dequantize them first",
    (None,),
    "quantization_config",
  ),
  (
    "compressed weights are not read: decompress them first",
    (None,),
    "compression_config",
  ),
  ("attention to later tokens is not computed", (True,), "is_causal"),
  ("only one stack of layers is run", (False, None), "is_encoder_decoder"),
  ("all layers have the same shape here", (None, {}), "per_layer_config"),
  ("chunked attention is not computed", (None,), "attention_chunk_size"),
  ("every layer has its own keys and values", (None,), "kv_sharing_modes"),
  (
    "composite models are not supported",
    (None,),
    "text_config text_encoder decoder generator",
  ),
  (
    "RoPE turns pairs (i, i + H/2), not (2i, 2i + 1)",
    (False, None),
    "rope_interleaved",
  ),
  ("heads are cut from the weights, not from here", (None, {}), "pruned_heads"),
  ("positions are one number per token", (False, None), "use_mrope"),
  (
    "attention to later tokens is not computed",
    (False, None),
    "use_bidirectional_attention",
  ),
  ("positions are RoPE", (False, None), "alibi"),
  ("every layer has RoPE", (None, []), "no_rope_layers"),
  ("queries, keys and values are not clipped", (None,), "clip_qkv"),
  ("logits are not capped", (None,), "logit_softcap final_logit_softcapping"),
  ("attention scores are not capped", (None,), "attn_logit_softcapping"),
  (
    "scores are divided by sqrt(head_dim)",
    (None,),
    "query_pre_attn_scalar attention_multiplier",
  ),
  ("logits are not scaled", (None, 1), "logit_scale logits_scaling"),
  ("embeddings are not scaled", (None, 1), "embedding_multiplier"),
  ("residuals are not scaled", (None, 1), "residual_multiplier"),
)
# By key: the values that are not refused, and why others are.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
  key: (neutral, why)
  for why, neutral, keys in _REFUSALS
  for key in keys.split()
}
