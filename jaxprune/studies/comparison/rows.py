"""What a comparison measured, as rows and as columns.

The read-outs inside, of each position, layer and sublayer, are columns first:
as rows of a file they are tens of megabytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.probes import position, trajectories
from jaxprune.studies.texts import DenseTexts

TEACHER_FORCED = "teacher_forced"
ALONE = "alone"  # what the pruned model writes on its own
SUBLAYERS = ("attention", "mlp")
# What is said of every position inside, in this order.
BY_LAYER = (
  *position.COSINES,
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
  "kl",
  "kl_estimate",
)


def output_rows(
  output: Mapping[str, Any],
  text: DenseTexts,
  common: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
  """Flat rows of one batch; steps after an end of text are left out.

  Args:
    output: what was measured at the output, leaves [B, R].
    text: what the dense model wrote.
    common: for each text of the batch that counts, its fields and `position`,
      the index of its last prompt token.
  """
  output = {name: np.asarray(leaf) for name, leaf in output.items()}
  for b, fields in enumerate(common):
    for step in range(int(text.lengths[b])):
      yield {
        **fields,
        "protocol": TEACHER_FORCED,
        "step": step,
        "position": fields["position"] + step,
        "token": int(text.chosen[b, step]),
        **{name: leaf[b, step] for name, leaf in output.items()},
      }


def layer_columns(
  inner: Mapping[str, Any],
  alive: np.ndarray,
  common: Sequence[Mapping[str, Any]],
  lens: str,
) -> dict[str, np.ndarray]:
  """Columns over the positions, layers and sublayers of one batch.

  Args:
    inner: by field, what was measured after every sublayer, [L, 2, C, R].
    alive: bool [C, R], False behind the end of a text.
    common: as for `output_rows`, of those of the C texts that count, which come
      first.
    lens: how inner layers were read out.

  Returns:
    Arrays of one length by field; layers, then sublayers vary fastest.
  """
  row_X, step_X = np.nonzero(alive)
  leaves = {
    # [L, 2, B, R] to [positions, L, 2].
    name: np.moveaxis(np.asarray(leaf), (2, 3), (0, 1))[row_X, step_X]
    for name, leaf in inner.items()
  }
  shape = leaves["kl"].shape

  def spread(values, axis):
    index = tuple(slice(None) if a == axis else None for a in range(3))
    return np.broadcast_to(np.asarray(values)[index], shape).ravel()

  columns = {
    name: spread([common[row][name] for row in row_X], 0) for name in common[0]
  }
  columns["step"] = spread(step_X, 0)
  columns["position"] = columns["position"] + columns["step"]
  size = columns["step"].size
  return {
    "protocol": np.full(size, TEACHER_FORCED, object),
    **columns,
    "layer": spread(np.arange(shape[1]), 1),
    "sublayer": spread(np.array(SUBLAYERS, object), 2),
    "lens": np.full(size, lens, object),
    **{name: leaf.ravel() for name, leaf in leaves.items()},
  }


def rows_of(columns: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
  """The rows of some columns."""
  for row in zip(*columns.values()):
    yield dict(zip(columns, row))


def decoding_rows(
  records: Mapping[str, trajectories.DecodingRecords],
  common: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
  """Flat rows of the decodings; steps after an end of text are left out.

  Args:
    records: from `sequences.compare_decodings`, leaves [R, B].
    common: for each text of the batch that counts, its fields and `position`,
      the index of its last prompt token.
  """
  for name, record in records.items():
    if name == TEACHER_FORCED:
      continue  # that comparison is one pass, and includes the layers
    leaves = position.fields_of(record.position)
    # `position` has only the likeliest token; sampling can choose another.
    for chosen in ("token_dense", "token_pruned", "aligned", "alive"):
      leaves[chosen] = getattr(record, chosen)
    leaves = {field: np.asarray(leaf) for field, leaf in leaves.items()}
    for b, text in enumerate(common):
      for step in np.flatnonzero(leaves["alive"][:, b]):
        place = {
          "protocol": name,
          "step": int(step),
          "position": text["position"] + int(step),
        }
        row = {field: leaf[step, b] for field, leaf in leaves.items()}
        yield text | place | row


def alone_rows(
  text: DenseTexts,
  chosen: np.ndarray,
  lengths: np.ndarray,
  common: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
  """Flat rows of what the pruned model writes, until its text ends.

  Args:
    text: what the dense model wrote.
    chosen: tokens of the pruned model, int [B, R].
    lengths: of its texts, int [B].
    common: for each text of the batch that counts, its fields and `position`,
      the index of its last prompt token.
  """
  for b, fields in enumerate(common):
    same = True
    for step in range(int(lengths[b])):
      yield fields | {
        "protocol": ALONE,
        "step": step,
        "position": fields["position"] + step,
        "token": int(chosen[b, step]),
        "aligned": same,
      }
      same = same and step < int(text.lengths[b])
      same = same and bool(chosen[b, step] == text.chosen[b, step])
