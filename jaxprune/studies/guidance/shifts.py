"""How far has a pruned model moved, in numbers that mean the same on any model?

Both models read what the dense one wrote. A sure position counts more than one
where many tokens would do: a change where the dense model hesitated costs no
answer. So beside plain means there are means weighted by exp(-entropy) of the
dense model, which is 1 where it is sure and 1/n where it wavers between n
tokens. All are logarithms, because damage spans orders of magnitude.

No label is needed, and a few hundred positions are enough.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Column of the measurements, and how it is read.
_MEANS = {
  "kl": "kl",
  "tv": "tv",
  "h": "one_minus_cos_h",
  "z": "one_minus_cos_z_centred",
  "p": "one_minus_cos_p",
}
COLUMNS = (*_MEANS.values(), "flip", "entropy", "max_abs_dz")
# What a rule may use, with what a reader would call it.
SHIFTS = {
  "flips": "share of changed next tokens",
  "flips_sure": "share of changed next tokens, weighted by certainty",
  "tv": "total variation",
  "tv_sure": "total variation, weighted by certainty",
  "kl": "KL",
  "kl_sure": "KL, weighted by certainty",
  "kl_relative": "KL over the entropy of the dense model",
  "kl_tail": "90th percentile of the KL",
  "h": "1 - cosine of h",
  "z": "1 - cosine of centred z",
  "p": "1 - cosine of p",
}
_LEAST = 1e-7  # below the rounding of float32; its logarithm stands for none
_ENTROPY = 0.01  # nats, added where the dense model is sure of everything


def shifts(measurements: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Reduce measurements at many positions to a number per kind of change.

  Args:
    measurements: columns of one length, a row per position, named as in
      `probes.position.Position`; of these COLUMNS are used.

  Returns:
    By name of SHIFTS the natural logarithm of what is described there. Shares
    count half a position more on either side, so that no change in few
    positions is not taken for none in many.

  Raises:
    ValueError: a column is missing, empty, of another length or not finite.
  """
  table = columns_of(measurements, COLUMNS)
  sure = np.exp(-table["entropy"])
  flip = table["flip"] > 0.5
  values = {name: np.mean(table[column]) for name, column in _MEANS.items()} | {
    "flips": (flip.sum() + 0.5) / (flip.size + 1),
    "flips_sure": (sure @ flip + 0.5) / (sure.sum() + 1),
    "tv_sure": sure @ table["tv"] / sure.sum(),
    "kl_sure": sure @ table["kl"] / sure.sum(),
    "kl_relative": np.mean(table["kl"])
    / (np.mean(table["entropy"]) + _ENTROPY),
    "kl_tail": np.quantile(table["kl"], 0.9),
  }
  return {name: float(np.log(max(values[name], _LEAST))) for name in SHIFTS}


def is_unchanged(measurements: Mapping[str, Sequence[float]]) -> bool:
  """Whether both models say the same at every position, to the last bit."""
  return not np.any(measurements["max_abs_dz"])


def columns_of(
  measurements: Mapping[str, Sequence[float]], names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Columns over positions, float64 [n] each.

  Args:
    measurements: what was measured at every position.
    names: of the columns, `kl` among them.

  Raises:
    ValueError: one is missing, they differ in length, or a value is not finite.
  """
  missing = [name for name in names if name not in measurements]
  if missing:
    raise ValueError(
      f"measurements lack {', '.join(missing)}: measure them at every position"
    )
  table = {name: np.asarray(measurements[name], np.float64) for name in names}
  shapes = {values.shape for values in table.values()}
  if len(shapes) != 1 or len(*shapes) != 1 or not table["kl"].size:
    raise ValueError(
      f"measurements: columns of shapes {sorted(shapes)}; give one value per"
      " position in each"
    )
  for name, values in table.items():
    if not np.isfinite(values).all():
      raise ValueError(
        f"measurements: {name} is not finite at"
        f" {int(np.sum(~np.isfinite(values)))} of {values.size} positions"
      )
  return table
