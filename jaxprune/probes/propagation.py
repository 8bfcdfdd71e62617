"""Which part of a change caused which part of its effect, exactly?

A change can be applied in part: `f` maps interpolation coefficients, 0 where
nothing is changed and 1 where everything is, to whatever is read out. A list of
P directions in the space of the coefficients divides the change. Along the
straight path t -> t * (sum of the directions), t in [0, 1], the effect
f(1) - f(0) is the integral of the derivative, and the derivative is a sum over
directions. So the effect is a sum of one contribution per direction, with no
rest:

  contribution of d = integral over t in [0, 1] of (df at t) . d

What is left out is the error of the quadrature, which is measured and drives
the number of nodes. First order is the same integral with one node at t = 0.

`f` is any callable from an array of coefficients to a pytree of arrays; nothing
here knows a model and nothing is compiled. Memory is that of forward mode: a
batch of directions, never all of them.

For a network of L layers the coefficients are [L, 2, T]: layer, attention or
MLP, position. Directions divide the whole change when they sum to one at every
coefficient.

Reference: integrated gradients, Sundararajan et al., arXiv:1703.01365,
equation 1 and Proposition 1 (completeness); Gauss-Legendre quadrature.
Differs from the reference in: forward mode, one direction at a time, so that
`f` may return many numbers; the path runs between two sets of weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

Array = jax.Array
Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribution:
  """An effect divided among directions.

  Attributes:
    contributions: tree of f, each leaf [P, ...]; their sum is `change`, up to
      `completeness_error`.
    change: tree of f, f(1) - f(0).
    completeness_error: tree of scalars, see `relative_error`.
    nodes: int32, quadrature nodes of the contributions.
  """

  contributions: Tree
  change: Tree
  completeness_error: Tree
  nodes: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AlongPath:
  """The truth and its Taylor polynomials at 0, at n places of a path.

  Attributes:
    t: [n].
    truth: tree of the read-out, leaves [n, ...].
    predicted: the same of the polynomials of order 1, 2, ..., one tree each.
  """

  t: Array
  truth: Tree
  predicted: tuple[Tree, ...]


def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
  """Places in (0, 1) and weights [nodes], exact to degree 2 * nodes - 1.

  Raises:
    ValueError: fewer than one node.
  """
  if nodes < 1:
    raise ValueError(f"nodes={nodes}: use 1 or more")
  places, weights = np.polynomial.legendre.leggauss(nodes)
  return (places + 1) / 2, weights / 2


def slopes_at(
  f: Callable[[Array], Tree],
  directions: Array,
  t: float | Array,
  *,
  batch_size: int | None = None,
) -> Tree:
  """Derivatives of f in every direction, at t of the path to their sum.

  Args:
    f: from coefficients [...] to a pytree.
    directions: [P, ...].
    t: place on the path, in [0, 1]; 0 gives the first order.
    batch_size: directions differentiated together; None is all.

  Returns:
    The tree of f, each leaf [P, ...].
  """
  coefficients = t * jnp.sum(directions, axis=0)

  def slope(direction):
    return jax.jvp(f, (coefficients,), (direction,))[1]

  return jax.lax.map(
    slope,
    directions,
    batch_size=min(batch_size or len(directions), len(directions)),
  )


def relative_error(estimate: Array, truth: Array) -> Array:
  """sum |estimate - truth| / sum |truth|; 0 / 0 is 0, x / 0 is inf.

  Args:
    estimate: real, any shape.
    truth: real, the same shape.

  Returns:
    A scalar, at least 0.
  """
  miss = jnp.sum(jnp.abs(estimate - truth))
  size = jnp.sum(jnp.abs(truth))
  return jnp.where(miss == 0, 0.0, miss / jnp.where(size == 0, 0.0, size))


def path_attribution(
  contribute: Callable[[int], Tree],
  change: Tree,
  *,
  tolerance: float = 1e-3,
  nodes: int = 4,
  max_nodes: int = 64,
) -> Attribution:
  """Divide `change` among directions; doubles the nodes until it is complete.

  The nodes that were not enough are not used again: those of Gauss and
  Legendre are not nested, and the finer rule is better without them.

  Args:
    contribute: from a number of nodes to the tree of f with leaves [P, ...]:
      the quadrature of `slopes_at`, or what a model has that is faster.
    change: tree of f, f at the end of the path less f at its start.
    tolerance: largest relative completeness error of any leaf.
    nodes: to begin with.
    max_nodes: the last that are tried; the error says whether they were
      enough.

  Raises:
    ValueError: `nodes` is not in [1, max_nodes], or `tolerance` not positive.
  """
  if not 1 <= nodes <= max_nodes:
    raise ValueError(f"nodes={nodes}: must be from 1 to max_nodes={max_nodes}")
  if not tolerance > 0:
    raise ValueError(f"tolerance={tolerance}: must be positive")
  while True:
    contributions = contribute(nodes)
    error = jax.tree.map(
      lambda parts, whole: relative_error(jnp.sum(parts, axis=0), whole),
      contributions,
      change,
    )
    worst = max(map(float, jax.tree.leaves(error)))
    # More nodes do not cure a NaN; it is returned so that it is seen.
    if not worst > tolerance or nodes == max_nodes:
      return Attribution(
        contributions=contributions,
        change=change,
        completeness_error=error,
        nodes=jnp.asarray(nodes, jnp.int32),
      )
    nodes = min(2 * nodes, max_nodes)


def lagrange_basis(places: np.ndarray, t: np.ndarray) -> np.ndarray:
  """The Z polynomials that are 1 at one place and 0 at the other places.

  Args:
    places: distinct [Z].
    t: where the polynomials are evaluated, [n].

  Returns:
    [n, Z].
  """
  values = np.ones((len(t), len(places)))
  for k, place in enumerate(places):
    for other, other_place in enumerate(places):
      if k != other:
        values[:, k] *= (t - other_place) / (place - other_place)
  return values


def node_gradients(
  gradient: Callable[[Array], Tree], states: Array, nodes: int, read_nodes: int
) -> Tree:
  """Weigh each node of a smooth path in the integral of a sharp read-out.

  Where f = read(state(coefficients)), the state moves smoothly and few nodes
  know it, while the read-out, a softmax, may turn over in a small part of the
  path. So the state and its derivatives are interpolated between the nodes, and
  only the gradient of the read-out is evaluated at many places:

    contribution of d = sum over nodes k of g_k . (dstate at t_k) . d,
    g_k = integral over t of (gradient at state(t)) l_k(t),

  where l_k is the polynomial that is 1 at node k and 0 at the other nodes.

  Args:
    gradient: from a state to a tree of gradients by the state.
    states: at t = 0, at the nodes of Gauss and Legendre, and at 1: [Z + 2,
      ...].
    nodes: Z.
    read_nodes: places at which the gradient is evaluated.

  Returns:
    The tree of `gradient`, leaves [Z, ...].
  """
  places, _ = gauss_legendre(nodes)
  fine, weights = gauss_legendre(read_nodes)
  ends = np.concatenate([[0.0], places, [1.0]])
  inner = lagrange_basis(places, fine) * weights[:, None]
  dtype = states.dtype
  mix = jnp.asarray(lagrange_basis(ends, fine), dtype)

  def add(total, inputs):
    mix_row, inner_row = inputs
    gradients = gradient(jnp.tensordot(mix_row, states, axes=1))
    return jax.tree.map(
      lambda sums, leaf: sums + jnp.tensordot(inner_row, leaf, axes=0),
      total,
      gradients,
    ), None

  shapes = jax.eval_shape(gradient, states[0])
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros((nodes, *leaf.shape), leaf.dtype), shapes
  )
  return jax.lax.scan(add, zeros, (mix, jnp.asarray(inner, dtype)))[0]


def interaction(
  f: Callable[[Array], Tree], coefficients: Array, first: Array, second: Array
) -> Tree:
  """The mixed second derivative of f in two directions; symmetric in them.

  Args:
    f: from coefficients [...] to a pytree.
    coefficients: where the derivative is taken, [...].
    first: direction [...].
    second: direction [...].

  Returns:
    The tree of f.
  """

  def slope(where):
    return jax.jvp(f, (where,), (first,))[1]

  return jax.jvp(slope, (coefficients,), (second,))[1]


def along_path(
  f: Callable[[Array], Tree],
  direction: Array,
  grid: Array,
  *,
  read: Callable[[Tree], Tree] = lambda value: value,
  order: int = 1,
) -> AlongPath:
  """f along a straight path from 0, beside its Taylor polynomials at 0.

  Args:
    f: from coefficients [...] to a pytree that is predicted.
    direction: end of the path, [...].
    grid: t of the places, [n].
    read: what is kept of f and of its predictions; may be far from linear.
    order: of the highest polynomial, 1 or 2.

  Raises:
    ValueError: another order.
  """
  if order not in (1, 2):
    raise ValueError(f"order={order}: must be 1 or 2")
  origin = jnp.zeros_like(direction)
  start, slope = jax.jvp(f, (origin,), (direction,))
  terms = [slope]
  if order == 2:
    bend = interaction(f, origin, direction, direction)
    terms.append(jax.tree.map(lambda leaf: leaf / 2, bend))

  def measure_at(t):
    predicted, sums, power = [], start, 1
    for term in terms:
      power = power * t
      sums = jax.tree.map(
        lambda a, b: a + power.astype(a.dtype) * b, sums, term
      )
      predicted.append(read(sums))
    return read(f(t * direction)), tuple(predicted)

  truth, predicted = jax.lax.map(measure_at, grid)
  return AlongPath(t=grid, truth=truth, predicted=predicted)


def radius(t: np.ndarray, error: np.ndarray, bound: float) -> float:
  """The largest t up to which the error stays within a bound; 0 if none.

  Args:
    t: ascending [n].
    error: relative error at each t, [n]; NaN is beyond any bound.
    bound: of the error.

  Returns:
    One of `t`, or 0.
  """
  good = np.asarray(error) <= bound
  count = len(good) if good.all() else int(np.argmin(good))
  return float(t[count - 1]) if count else 0.0


def sublayer_directions(num_layers: int, length: int) -> Array:
  """One direction per sublayer, at all positions.

  Args:
    num_layers: L.
    length: T, positions.

  Returns:
    [2L, L, 2, T], attention 0, MLP 0, attention 1, ...
  """
  whole_PL2 = rearrange(jnp.eye(2 * num_layers), "P (L two) -> P L two", two=2)
  return repeat(whole_PL2, "P L two -> P L two T", T=length)


def layer_groups(num_layers: int, groups: int) -> list[range]:
  """Layers in order, cut into groups of sizes that differ by one at most.

  Args:
    num_layers: L.
    groups: number of groups, from 1 to L.

  Returns:
    The layers of each group, the earliest first.

  Raises:
    ValueError: no group, or more groups than layers.
  """
  if not 1 <= groups <= num_layers:
    raise ValueError(
      f"groups={groups}: the model has {num_layers} layers; use 1 to"
      f" {num_layers}"
    )
  ends = [num_layers * index // groups for index in range(groups + 1)]
  return [range(*pair) for pair in zip(ends, ends[1:])]


def step_directions(
  num_layers: int, length: int, num_steps: int, groups: int = 1
) -> Array:
  """One direction per group of layers and decoding step.

  In each group, the first is what stands before the first step; the others are
  the positions that steps 0 to R - 1 read, which are the last R.

  Args:
    num_layers: L.
    length: T, positions.
    num_steps: R.
    groups: P, see `layer_groups`.

  Returns:
    [P * (1 + R), L, 2, T].
  """
  cause_T = jnp.maximum(jnp.arange(length) - (length - num_steps) + 1, 0)
  causes_YT = (jnp.arange(num_steps + 1)[:, None] == cause_T[None]).astype(
    jnp.float32
  )
  inside_PL = jnp.asarray(
    [
      [layer in group for layer in range(num_layers)]
      for group in layer_groups(num_layers, groups)
    ],
    jnp.float32,
  )
  inside_PYLT = jnp.einsum("PL,YT->PYLT", inside_PL, causes_YT)
  return repeat(inside_PYLT, "P Y L T -> (P Y) L two T", two=2)
