"""How far does a pruned model follow a right text, token by token?

Between choosing among options and writing alone lies the middle case: the model
reads a text that was written already, and is asked at every token what it would
have written. Two texts of each item are read: what the dense model itself
wrote, along which the pruned model writes the same as long as nothing flips,
and the published solution.

Sums over the tokens of each item are kept, not the tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.probes import divergences
from jaxprune.probes.decoder import sequences

_TOKENS = 1024  # that are read together
_STEP = 64  # lengths are rounded up, so that few programs are compiled
_SURE = 2.0  # nats; a dense margin beyond it is a sure choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
  """A text that is read.

  Attributes:
    prompt: ids in front, at least one.
    text: ids whose predictions count, at least one.
  """

  prompt: Sequence[int]
  text: Sequence[int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
  """Some paths as the dense model reads them.

  Attributes:
    items: index of each path, [B]; the last one repeated in a batch that is
      not full.
    count: how many of them count.
    reading: what is read.
    text: the tokens that are predicted, int32 [B, R].
    alive: which of them there are, bool [B, R].
    h: what the LM head of the dense model reads, [B, R, D].
  """

  items: np.ndarray
  count: int
  reading: sequences.Reading
  text: np.ndarray
  alive: np.ndarray
  h: jax.Array


def read(dense: sequences.Model, paths: Sequence[Path]) -> list[Batch]:
  """Let the dense model read every path.

  Args:
    dense: the dense model.
    paths: what it reads.
  """
  return [
    Batch(h=sequences.read_outputs(dense, fields["reading"]), **fields)
    for fields in _batches(paths)
  ]


def follow(
  dense: sequences.Model,
  pruned: sequences.Model,
  batches: Sequence[Batch],
  tell: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
  """Sums over the tokens of every path.

  Args:
    dense: the dense model.
    pruned: the pruned model.
    batches: from `read`.
    tell: told how many batches are done, and of how many.

  Returns:
    float64 [paths] each: `tokens`, their number; `flips`, where the likeliest
    token changed; `sure_flips`, those where the dense model was more than 2
    nats surer of its choice than of the next; `first_flip`, tokens before the
    first of them, or all; `misses` and `dense_misses`, where a model would not
    have written the token of the path; `kl`; `nll` and `dense_nll`, of the
    path. Nats.
  """
  sums: dict[str, np.ndarray] = {}
  total = max(int(batch.items.max()) for batch in batches) + 1
  for index, batch in enumerate(batches):
    columns = sequences.compare_outputs(
      dense,
      pruned,
      batch.h,
      batch.reading,
      jnp.asarray(batch.text),
      measure=_measure,
    )
    columns = {name: np.asarray(leaf) for name, leaf in columns.items()}
    alive_BR, flip_BR = batch.alive, columns["flips"] & batch.alive
    never_B = ~flip_BR.any(axis=1)
    columns["tokens"] = np.ones_like(alive_BR)
    per_item = {
      name: np.where(alive_BR, leaf_BR, 0).sum(axis=1, dtype=np.float64)
      for name, leaf_BR in columns.items()
    }
    per_item["first_flip"] = np.where(
      never_B, per_item["tokens"], flip_BR.argmax(axis=1)
    )
    for name, values in per_item.items():
      column = sums.setdefault(name, np.zeros(total))
      column[batch.items[: batch.count]] = values[: batch.count]
    tell(index + 1, len(batches))
  return sums


def _measure(h_D, g_D, z_V, y_V, token):
  """One position: whose choice is what, and how surprised both are."""
  del h_D, g_D
  distance = divergences.compare_distributions(z_V, y_V, 1.0)
  dense, pruned = (divergences.concentration(x, 1.0) for x in (z_V, y_V))
  flip = dense.token != pruned.token

  def nats(x_V):
    return jax.nn.logsumexp(x_V) - x_V[token]

  return {
    "flips": flip,
    "sure_flips": flip & (dense.margin > _SURE),
    "misses": pruned.token != token,
    "dense_misses": dense.token != token,
    "kl": distance.kl,
    "nll": nats(y_V),
    "dense_nll": nats(z_V),
  }


def _batches(paths) -> Iterator[dict]:
  """Paths of about one length together, padded on the right."""
  sizes = [len(path.prompt) + len(path.text) - 1 for path in paths]
  by_length: dict[int, list[int]] = {}
  for index in np.argsort(sizes, kind="stable"):
    length = -(-sizes[index] // _STEP) * _STEP
    by_length.setdefault(length, []).append(int(index))
  for length, indices in by_length.items():
    size = max(1, _TOKENS // length)
    most = max(len(paths[index].text) for index in indices)
    most = -(-most // _STEP) * _STEP
    for start in range(0, len(indices), size):
      part = indices[start : start + size]
      items = np.array(part + part[-1:] * (size - len(part)))
      yield {"items": items, "count": len(part)} | _arrays(
        [paths[index] for index in items], length, most
      )


def _arrays(paths, length, most) -> dict:
  tokens_BT = np.zeros((len(paths), length), np.int32)
  valid_BT = np.zeros((len(paths), length), bool)
  text_BR = np.zeros((len(paths), most), np.int32)
  alive_BR = np.zeros((len(paths), most), bool)
  rows_BR = np.zeros((len(paths), most), np.int32)
  for b, path in enumerate(paths):
    ids = [*path.prompt, *path.text][:-1]
    tokens_BT[b, : len(ids)], valid_BT[b, : len(ids)] = ids, True
    count = len(path.text)
    text_BR[b, :count], alive_BR[b, :count] = path.text, True
    rows_BR[b, :count] = len(path.prompt) - 1 + np.arange(count)
  return {
    "reading": sequences.Reading(
      tokens=jnp.asarray(tokens_BT),
      valid=jnp.asarray(valid_BT),
      rows=jnp.asarray(rows_BR),
    ),
    "text": text_BR,
    "alive": alive_BR,
  }
