"""What jaxprune is timed against: PyTorch, in the manner of the papers' code.

Needs the extra `reference`.
"""

from typing import Any

import numpy as np

_SHAPE = (
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "intermediate_size",
  "vocab_size",
)
# Of random Qwen2 models.
SIZES = {
  "S": dict(zip(_SHAPE, (256, 8, 8, 2, 704, 8192), strict=True)),
  "M": dict(
    zip(_SHAPE, (896, 24, 14, 2, 4864, 32000), strict=True),
    tie_word_embeddings=True,
  ),
}


def start(threads: int) -> None:
  """Set PyTorch's threads and seed, and keep transformers quiet.

  Args:
    threads: of PyTorch; JAX takes the cores that it is given.
  """
  import torch
  import transformers

  torch.set_num_threads(threads)
  torch.manual_seed(0)
  transformers.utils.logging.disable_progress_bar()


def random_model(size: str) -> Any:
  """Make a Qwen2 with random weights, of a size named in SIZES."""
  import transformers

  return transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(**SIZES[size], max_position_embeddings=2048)
  ).eval()


def read_model(folder: str) -> Any:
  """Load a model in float32 with stock transformers."""
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()


def halve(model: Any) -> None:
  """Zero the smaller half of every matrix, in place, about."""
  import torch

  with torch.no_grad():
    for weight in model.model.layers.parameters():
      if weight.ndim == 2:
        size = weight.abs()
        weight *= size > size.flatten()[:4096].median()


def transitions(
  dense: Any, pruned: Any, ids: Any, steps: int
) -> list[list[float]]:
  """Decode with hooks and compare every sublayer at every step.

  Pruned attention gets no cache, in the official script too.

  Args:
    dense: a Llama or Qwen2 of transformers.
    pruned: another of the same shape.
    ids: the prompt, int64 tensor [1, length].
    steps: tokens to decode.

  Returns:
    The numbers of one sublayer each, step by step, layer by layer.
  """
  import torch

  seen = {}

  def before(index):
    def hook(module, args, options):
      x = args[0] if args else options["hidden_states"]
      seen[index] = [x[:, -1:], options["position_embeddings"]]

    return hook

  def middle(index):
    def hook(module, args):
      seen[index].append(args[0][:, -1:])

    return hook

  handles = []
  for index, layer in enumerate(dense.model.layers):
    handles.append(
      layer.register_forward_pre_hook(before(index), with_kwargs=True)
    )
    handles.append(
      layer.post_attention_layernorm.register_forward_pre_hook(middle(index))
    )
  rows, cache = [], None
  with torch.no_grad():
    for _ in range(steps):
      done = dense(ids, past_key_values=cache, use_cache=True)
      cache, ids = done.past_key_values, done.logits[:, -1:].argmax(-1)
      states = [seen[i] for i in range(len(dense.model.layers))]
      for layer, other, state in zip(
        dense.model.layers, pruned.model.layers, states
      ):
        for h, g in _sublayer_outputs(layer, other, *state):
          rows.append(
            _sublayer_metrics(
              h[0, 0], g[0, 0], dense.lm_head(h)[0, 0], dense.lm_head(g)[0, 0]
            )
          )
  for handle in handles:
    handle.remove()
  return rows


def _sublayer_outputs(layer, other, x, angles, mid):
  """The stream after attention and after the MLP, dense and pruned."""
  g_mid = (
    x
    + other.self_attn(
      hidden_states=other.input_layernorm(x),
      position_embeddings=tuple(a[:, -1:] for a in angles),
      attention_mask=None,
      past_key_values=None,
    )[0]
  )
  out = mid + layer.mlp(layer.post_attention_layernorm(mid))
  g_out = mid + other.mlp(other.post_attention_layernorm(mid))
  return (mid, g_mid), (out, g_out)


def _sublayer_metrics(h, g, z, y):
  """The numbers that the official log has of one sublayer, as floats."""
  import torch

  cos = torch.nn.functional.cosine_similarity
  numbers = []
  p, q = torch.softmax(z, -1), torch.softmax(y, -1)
  for a, b in ((h, g), (z, y), (p, q)):
    numbers.append(cos(a, b, dim=0))
  for a, b in ((h, g), (z, y)):
    change = b - a
    alpha = (a @ change) / (a @ a)
    across = change - alpha * a
    numbers += [alpha, (alpha * a).norm() / a.norm(), across.norm() / a.norm()]
  numbers.append((p * ((p + 1e-12).log() - (q + 1e-12).log())).sum())
  dz = y - z
  r = p * p / (p * p).sum()
  for weight in (p, r, torch.full_like(p, 1 / len(p))):
    mean = (weight * dz).sum()
    numbers.append((weight * (dz - mean) ** 2).sum() / 2)
  numbers += [x.median() for x in (z, y, dz.abs())]
  torch.topk(p, 5)
  return [x.item() for x in numbers]


def random_ids(vocab_size: int, shape: tuple[int, int], low: int) -> np.ndarray:
  """Draw token ids, the same at each call.

  Args:
    vocab_size: one more than the largest id.
    shape: of the result.
    low: the smallest id.

  Returns:
    int32 of that shape.
  """
  draw = np.random.default_rng(0)
  return draw.integers(low, vocab_size, shape).astype(np.int32)
