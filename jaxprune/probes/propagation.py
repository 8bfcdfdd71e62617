"""Which part of a change caused which part of its effect, exactly?

A change is made of P directions, a share of each of them can be applied, and
`f` maps shares to whatever is read out. Along the straight path t -> t * (sum
of the directions), t in [0, 1], the effect f(1) - f(0) is the integral of the
derivative, and the derivative is a sum over directions. So the effect is a sum
of one contribution per direction, with no rest:

  contribution of d = integral over t in [0, 1] of (df at t) . d

What is left out is the error of the quadrature, which is measured and drives
the number of nodes. First order is the same integral with one node at t = 0.

`f` is any callable from an array of shares to a pytree of arrays; nothing here
knows a model and nothing is compiled. Memory is that of forward mode: a batch
of directions, never all of them.

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
    f: from shares [...] to a pytree.
    directions: [P, ...].
    t: where on the path; 0 gives the first order.
    batch_size: directions differentiated together; None is all.

  Returns:
    The tree of f, each leaf [P, ...].
  """
  shares = t * jnp.sum(directions, axis=0)

  def slope(direction):
    return jax.jvp(f, (shares,), (direction,))[1]

  return jax.lax.map(
    slope,
    directions,
    batch_size=min(batch_size or len(directions), len(directions)),
  )


def integrate(slopes: Callable[[Array], Tree], nodes: int) -> Tree:
  """The integral of `slopes` over [0, 1], each leaf in its own dtype.

  Args:
    slopes: from t, a scalar, to a pytree; compiled once whatever `nodes` is.
    nodes: of Gauss and Legendre.
  """
  total = None
  for place, weight in zip(*gauss_legendre(nodes)):
    part = jax.tree.map(
      lambda leaf, weight=weight: leaf * weight.astype(leaf.dtype),
      slopes(jnp.asarray(place)),
    )
    total = part if total is None else jax.tree.map(jnp.add, total, part)
  return total


def relative_error(found: Array, truth: Array) -> Array:
  """sum |found - truth| / sum |truth|; 0 / 0 is 0, x / 0 is inf."""
  miss = jnp.sum(jnp.abs(found - truth))
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
      `integrate` of `slopes_at`, or what a driver has that is faster.
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
    # A NaN does not get better with more nodes, and is returned to be seen.
    if not worst > tolerance or nodes == max_nodes:
      return Attribution(
        contributions=contributions,
        change=change,
        completeness_error=error,
        nodes=jnp.asarray(nodes, jnp.int32),
      )
    nodes = min(2 * nodes, max_nodes)


def lagrange_basis(places: np.ndarray, t: np.ndarray) -> np.ndarray:
  """Values [n, K] at t [n] of the K polynomials that are 1 at one place."""
  values = np.ones((len(t), len(places)))
  for one, here in enumerate(places):
    for other, there in enumerate(places):
      if one != other:
        values[:, one] *= (t - there) / (here - there)
  return values


def node_gradients(
  gradient: Callable[[Array], Tree], states: Array, nodes: int, read_nodes: int
) -> Tree:
  """What each node of a smooth path weighs in the integral of a sharp read-out.

  Where f = read(state(shares)), the state moves smoothly and few nodes know
  it, while the read-out, a softmax, may turn over in a small part of the path.
  So the state and its derivatives are interpolated between the nodes, and only
  the gradient of the read-out is evaluated at many places:

    contribution of d = sum over nodes k of g_k . (dstate at t_k) . d,
    g_k = integral over t of (gradient at state(t)) l_k(t),

  where l_k is the polynomial that is 1 at node k and 0 at the other nodes.

  Args:
    gradient: from a state to a tree of gradients by the state.
    states: at t = 0, at the nodes of Gauss and Legendre, and at 1: [K + 2,
      ...].
    nodes: K.
    read_nodes: places at which the gradient is evaluated.

  Returns:
    The tree of `gradient`, leaves [K, ...].
  """
  places, _ = gauss_legendre(nodes)
  fine, weights = gauss_legendre(read_nodes)
  ends = np.concatenate([[0.0], places, [1.0]])
  inner_NK = lagrange_basis(places, fine) * weights[:, None]
  dtype = states.dtype
  mix_NS = jnp.asarray(lagrange_basis(ends, fine), dtype)

  def add(total, inputs):
    mix_S, inner_K = inputs
    found = gradient(jnp.tensordot(mix_S, states, axes=1))
    return jax.tree.map(
      lambda sums, leaf: sums + jnp.tensordot(inner_K, leaf, axes=0),
      total,
      found,
    ), None

  shapes = jax.eval_shape(gradient, states[0])
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros((nodes, *leaf.shape), leaf.dtype), shapes
  )
  return jax.lax.scan(add, zeros, (mix_NS, jnp.asarray(inner_NK, dtype)))[0]


def interaction(
  f: Callable[[Array], Tree], shares: Array, first: Array, second: Array
) -> Tree:
  """The mixed second derivative of f in two directions; symmetric in them.

  Args:
    f: from shares [...] to a pytree.
    shares: where, [...].
    first: direction [...].
    second: direction [...].

  Returns:
    The tree of f.
  """

  def slope(where):
    return jax.jvp(f, (where,), (first,))[1]

  return jax.jvp(slope, (shares,), (second,))[1]


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
    f: from shares [...] to a pytree that is predicted.
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

  def at(t):
    predicted, sums, power = [], start, 1
    for term in terms:
      power = power * t
      sums = jax.tree.map(
        lambda a, b: a + power.astype(a.dtype) * b, sums, term
      )
      predicted.append(read(sums))
    return read(f(t * direction)), tuple(predicted)

  truth, predicted = jax.lax.map(at, grid)
  return AlongPath(t=grid, truth=truth, predicted=predicted)


def radius(t: np.ndarray, error: np.ndarray, bound: float) -> float:
  """The largest t up to which the error stays within a bound; 0 if none.

  Args:
    t: ascending [n].
    error: relative error at each t, [n]; NaN is beyond any bound.
    bound: of the error.
  """
  good = np.asarray(error) <= bound
  count = len(good) if good.all() else int(np.argmin(good))
  return float(t[count - 1]) if count else 0.0
