"""How sparse should each layer be, so that the whole meets one budget?

An allocation starts from a wish per layer and is shifted by one constant,
inside [0, 1), until the parameters removed add up to the budget. It runs on
the host in float64 and gives Python floats, the type patterns take.

A layer may be spared for what the output loses if that layer alone is pruned.
If the loss of layer l grows like a_l e^(k s) in its sparsity s, the least sum
under a budget has all slopes equal: s_l = constant - log(a_l) / k.

Reference: Huang et al., "Determining Layer-wise Sparsity for Large Language
Models Through a Theoretical Perspective" (arXiv 2502.14770), for sparsity
rising linearly with depth.

Differs from the reference in: layers of different size count by their
parameters; where a layer would leave [0, 1) it is clipped and the others
make up for it, so any slope meets the budget.
"""

from collections.abc import Sequence

import numpy as np

# Results are rounded to this many decimals: 0.49999999999999994 instead of
# 0.5 would cost an entry in every comparison group of even size.
_DECIMALS = 12
_MOST = 1.0 - 10.0**-_DECIMALS


def meet_budget(
  wishes: Sequence[float], sparsity: float, sizes: Sequence[int] | None = None
) -> tuple[float, ...]:
  """Shift all wishes by one constant, clipped, to remove the right total.

  Args:
    wishes: one number per layer; only their differences matter.
    sparsity: fraction of all parameters to remove, in [0, 1).
    sizes: prunable parameters per layer; None for equal layers.

  Returns:
    Sparsity per layer in [0, 1): sum(sizes * result) equals
    sparsity * sum(sizes) to 1e-12 relative to sum(sizes). A pattern then
    removes whole entries, less than one per comparison group below that.

  Raises:
    ValueError: sparsity out of range, wishes not finite, sizes not positive
      or of another length.
  """
  wish_L = np.asarray(wishes, np.float64)
  size_L = (
    np.ones_like(wish_L) if sizes is None else np.asarray(sizes, np.float64)
  )
  if not 0 <= sparsity < 1:
    raise ValueError(f"sparsity is {sparsity}; use a fraction in [0, 1)")
  if wish_L.ndim != 1 or not wish_L.size or not np.isfinite(wish_L).all():
    raise ValueError(f"wishes are {wishes}; use finite numbers, one per layer")
  if size_L.shape != wish_L.shape or (size_L <= 0).any():
    raise ValueError(
      f"sizes are {sizes}; use {wish_L.size} positive numbers, as for wishes"
    )
  share_L = size_L / size_L.sum()

  def removed(shift):
    return np.dot(share_L, np.clip(wish_L + shift, 0.0, _MOST))

  # The total is piecewise linear in the shift, with a corner where a layer
  # starts to lose and where it has lost everything.
  corners = np.sort(np.concatenate([-wish_L, _MOST - wish_L]))
  totals = np.array([removed(corner) for corner in corners])
  shift = np.interp(sparsity, totals, corners)
  sparsity_L = np.clip(wish_L + shift, 0.0, _MOST)
  return tuple(round(float(s), _DECIMALS) for s in sparsity_L)


def uniform(num_layers: int, sparsity: float) -> tuple[float, ...]:
  """Give every layer the same sparsity, exactly.

  Args:
    num_layers: L, at least 1.
    sparsity: in [0, 1).

  Returns:
    L times the sparsity.

  Raises:
    ValueError: sparsity out of range or no layers.
  """
  meet_budget([0.0] * num_layers, sparsity)
  return (sparsity,) * num_layers


def linear(
  num_layers: int,
  sparsity: float,
  slope: float,
  sizes: Sequence[int] | None = None,
) -> tuple[float, ...]:
  """Let sparsity rise by `slope` from each layer to the next.

  Args:
    num_layers: L.
    sparsity: in [0, 1), over all layers.
    slope: the common difference; positive spares early layers. The paper
      stays below min(2 S, 2 (1 - S)) / (L - 1), where nothing is clipped.
    sizes: prunable parameters per layer; None for equal layers.

  Returns:
    Sparsity per layer, first layer first.

  Raises:
    ValueError: sparsity out of range, or sizes that are not positive.
  """
  return meet_budget(slope * np.arange(num_layers), sparsity, sizes)


def by_loss(
  losses: Sequence[float],
  sparsity: float,
  *,
  spread: float = 0.08,
  sizes: Sequence[int] | None = None,
) -> tuple[float, ...]:
  """Spare layers whose pruning costs the output most, by the log of that loss.

  Args:
    losses: per layer, for instance KL in nats of pruning it alone; at least
      0. Only ratios matter. A layer of loss 0 counts like the smallest of
      the others.
    sparsity: in [0, 1), over all layers.
    spread: half of what the highest and lowest sparsity lie apart, unless
      clipped at 0 or 1.
    sizes: prunable parameters per layer; None for equal layers.

  Returns:
    Sparsity per layer, first layer first; equal losses give the uniform one.

  Raises:
    ValueError: sparsity out of range, sizes not positive or of another
      length, or a loss that is negative or not finite.
  """
  loss_L = np.asarray(losses, np.float64)
  if not (np.isfinite(loss_L) & (loss_L >= 0)).all():
    raise ValueError(f"losses are {losses}; use finite numbers of at least 0")
  harmful = loss_L > 0
  least = loss_L[harmful].min() if harmful.any() else 1.0
  log_L = np.log(np.where(harmful, loss_L, least))
  width = np.ptp(log_L)
  scaled_L = log_L / width if width > 0 else np.zeros_like(log_L)
  return meet_budget(-2 * spread * scaled_L, sparsity, sizes)
