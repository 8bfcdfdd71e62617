"""What pruning is timed against: the papers' methods, in PyTorch.

Layer by layer, as the official code walks: the statistics of the layer as it
is, new weights, and a second pass through the pruned layer.

Reference: Sun et al., Wanda, arXiv 2306.11695, equation 1; Frantar and
Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1; He et al., LLM-Drop, arXiv
2406.15786, section 3.1, for the similarities of sublayers.
Differs from the reference in: Wanda sums squares of float32 once instead of
running means; SparseGPT removes exactly half of a block.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

Seconds = dict[str, float]
_BLOCK = 128
_DAMPING = 0.01


def wanda(model: Any, ids: Any, pattern: tuple[int, int] | None) -> Seconds:
  """Prune in place by Wanda.

  Args:
    model: a Llama or Qwen2 of transformers.
    ids: calibration tokens, int64 tensor [sequences, length].
    pattern: n and m, n kept out of m inputs; None removes half of the inputs
      of every output.

  Returns:
    Wall seconds of statistics, masks and second_forward.
  """

  def start(module):
    return torch.zeros(module.in_features)

  def add(total, x):
    total += x.float().square().sum((0, 1))

  def prune(module, total):
    score = module.weight.abs() * (total / len(ids)).sqrt()[None]
    _zero_lowest(module.weight.data, score, pattern)

  return _by_layer(model, ids, (start, add, prune))


def sparsegpt(model: Any, ids: Any, pattern: tuple[int, int] | None) -> Seconds:
  """Prune in place by SparseGPT.

  Args:
    model: a Llama or Qwen2 of transformers.
    ids: calibration tokens, int64 tensor [sequences, length].
    pattern: n and m; None removes half of every block of 128 inputs.

  Returns:
    Wall seconds of statistics, masks and second_forward, and of masks the parts
    factor and update.
  """
  seconds = {"factor": 0.0, "update": 0.0}

  def start(module):
    return torch.zeros(module.in_features, module.in_features)

  def add(gram, x):
    rows = x.reshape(-1, x.shape[-1]).float()
    gram += rows.T @ rows

  def prune(module, gram):
    began = time.perf_counter()
    upper, dead = inverse_factor(gram * (2.0 / len(ids)))
    middle = time.perf_counter()
    weight = module.weight.data
    weight[:, dead] = 0
    weight.copy_(update(weight, upper, pattern))
    seconds["factor"] += middle - began
    seconds["update"] += time.perf_counter() - middle

  return _by_layer(model, ids, (start, add, prune)) | seconds


def inverse_factor(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """U of H^-1 = U^T U, H damped, by two Cholesky factors and an inverse.

  Args:
    hessian: [I, I], changed in place.

  Returns:
    U, upper triangular, [I, I], and which inputs are never other than zero.
  """
  diagonal = hessian.diagonal()
  dead = diagonal == 0
  diagonal[dead] = 1
  diagonal += _DAMPING * diagonal.mean()
  inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
  return torch.linalg.cholesky(inverse, upper=True), dead


def update(
  weight: torch.Tensor, upper: torch.Tensor, pattern: tuple[int, int] | None
) -> torch.Tensor:
  """Remove weights, and correct those that come after.

  Args:
    weight: [O, I].
    upper: of `inverse_factor`.
    pattern: n and m; None removes half of every block.

  Returns:
    The new weights, [O, I].
  """
  weight = weight.clone()
  inputs = weight.shape[1]
  for start in range(0, inputs, _BLOCK):
    stop = min(start + _BLOCK, inputs)
    block, corner = weight[:, start:stop].clone(), upper[start:stop, start:stop]
    errors, kept = torch.zeros_like(block), torch.zeros_like(block)
    removed = torch.zeros_like(block, dtype=torch.bool)
    if pattern is None:
      score = (block / corner.diagonal()[None]).square()
      order = torch.sort(score.flatten(), stable=True)[1]
      removed.view(-1)[order[: score.numel() // 2]] = True
    for i in range(stop - start):
      if pattern is not None and i % pattern[1] == 0:
        part = slice(i, i + pattern[1])
        score = (block[:, part] / corner.diagonal()[None, part]).square()
        lowest = torch.topk(
          score, pattern[1] - pattern[0], dim=1, largest=False
        )[1]
        removed[:, part].scatter_(1, lowest, True)
      column = block[:, i]
      kept[:, i] = torch.where(removed[:, i], 0.0, column)
      error = (column - kept[:, i]) / corner[i, i]
      block[:, i:] -= error[:, None] @ corner[i, i:][None]
      errors[:, i] = error
    weight[:, start:stop] = kept
    weight[:, stop:] -= errors @ upper[start:stop, stop:]
  return weight


def drop_scores(model: Any, ids: Any, target: str) -> list[float]:
  """Mean cosine of what goes in and out, of every layer, by one forward pass.

  Args:
    model: a Llama or Qwen2 of transformers.
    ids: calibration tokens, int64 tensor [sequences, length].
    target: attention, mlp or block.
  """
  layers = model.model.layers
  sums, seen = [0.0] * len(layers), {}
  handles = []

  def remember(index):
    def hook(module, args, options):
      seen[index] = args[0] if args else options["hidden_states"]

    return hook

  def compare(index):
    def hook(module, args, output):
      y = output[0] if isinstance(output, tuple) else output
      _add(index, y)

    return hook

  def compare_next(index):
    def hook(module, args):
      _add(index, args[0])

    return hook

  def _add(index, y):
    cosine = torch.nn.functional.cosine_similarity(seen[index], y, dim=-1)
    sums[index] += cosine.sum().item()

  for index, layer in enumerate(layers):
    norm = layer.post_attention_layernorm
    first = layer if target != "mlp" else norm
    handles.append(
      first.register_forward_pre_hook(remember(index), with_kwargs=True)
    )
    if target == "attention":
      handles.append(norm.register_forward_pre_hook(compare_next(index)))
    else:
      handles.append(layer.register_forward_hook(compare(index)))
  with torch.no_grad():
    for row in ids:
      model.model(row[None], use_cache=False)
  for handle in handles:
    handle.remove()
  return [total / ids.numel() for total in sums]


def _by_layer(
  model, ids, method: tuple[Callable, Callable, Callable]
) -> Seconds:
  """Statistics, new weights and a second pass, layer by layer."""
  start, add, prune = method
  seconds = dict.fromkeys(("statistics", "masks", "second_forward"), 0.0)

  def lap(stage, began):
    seconds[stage] += time.perf_counter() - began
    return time.perf_counter()

  with torch.no_grad():
    states, options = _inputs(model, ids)
    for layer in model.model.layers:
      began = time.perf_counter()
      kernels = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
      totals = {m: start(m) for m in kernels}

      def hook(module, args, output, totals=totals):
        add(totals[module], args[0])

      handles = [m.register_forward_hook(hook) for m in kernels]
      for x, option in zip(states, options):
        layer(x, **option)
      for handle in handles:
        handle.remove()
      began = lap("statistics", began)
      for m in kernels:
        prune(m, totals.pop(m))
      began = lap("masks", began)
      outputs = [layer(x, **o) for x, o in zip(states, options)]
      states = [y[0] if isinstance(y, tuple) else y for y in outputs]
      lap("second_forward", began)
  return seconds


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
  if pattern is None:
    order = torch.sort(score, dim=-1, stable=True)[1]
    weight.scatter_(1, order[:, : score.shape[1] // 2], 0)
    return
  keep, of = pattern
  groups = score.reshape(len(score), -1, of)
  lowest = torch.topk(groups, of - keep, dim=2, largest=False)[1]
  weight.reshape(groups.shape).scatter_(2, lowest, 0)
