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


def wanda(model: Any, ids: Any, pattern: tuple[int, int] | None) -> None:
  """Prune in place as the paper of Wanda describes it, layer by layer.

  Args:
    model: a Llama or Qwen2 of transformers.
    ids: calibration tokens, int64 tensor [sequences, length].
    pattern: n and m, n kept out of m inputs; None removes half of the inputs
      of every output.
  """
  import torch

  with torch.no_grad():
    states, options = _inputs(model, ids)
    for layer in model.model.layers:
      kernels = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
      sums = {m: torch.zeros(m.in_features) for m in kernels}

      def add(module, args, output, sums=sums):
        sums[module] += args[0].float().square().sum((0, 1))

      handles = [m.register_forward_hook(add) for m in kernels]
      for x, option in zip(states, options):
        layer(x, **option)
      for handle in handles:
        handle.remove()
      for m in kernels:
        score = m.weight.abs() * (sums[m] / len(states)).sqrt()[None]
        _zero_lowest(m.weight.data, score, pattern)
      outputs = [layer(x, **o) for x, o in zip(states, options)]
      states = [y[0] if isinstance(y, tuple) else y for y in outputs]


def _inputs(model, ids):
  """What the first layer is given for each row, and its other arguments."""
  captured = {}

  def remember(module, args, options):
    captured.update(
      options, x=options.get("hidden_states", args[0] if args else None)
    )
    raise StopIteration

  handle = model.model.layers[0].register_forward_pre_hook(
    remember, with_kwargs=True
  )
  states, options = [], []
  for row in ids:
    try:
      model(row[None], use_cache=False)
    except StopIteration:
      pass
    states.append(captured.pop("x"))
    captured.pop("hidden_states", None)
    options.append(dict(captured))
    captured.clear()
  handle.remove()
  return states, options


def _zero_lowest(weight, score, pattern):
  """Zero the entries with the lowest scores, per output or per group."""
  import torch

  if pattern is None:
    order = torch.sort(score, dim=-1, stable=True)[1]
    weight.scatter_(1, order[:, : score.shape[1] // 2], 0)
    return
  keep, of = pattern
  groups = score.reshape(len(score), -1, of)
  lowest = torch.topk(groups, of - keep, dim=2, largest=False)[1]
  weight.reshape(groups.shape).scatter_(2, lowest, 0)


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
