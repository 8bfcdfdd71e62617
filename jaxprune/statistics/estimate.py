"""A number and how far to trust it: an estimate with its 95 % interval.

Every study makes its estimates here (`intervals`, `ranks`, `bins`,
`separation`), stores them with `Estimate.to_json`, and shows them with
`Estimate.format`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

LEVEL = 0.95  # intended coverage of every interval
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and the 95 % interval in which it may lie.

  Attributes:
    value: the number on the data as they are; NaN if there was nothing to
      estimate it from.
    low: lower end of the interval; NaN where there is none, because fewer than
      two independent units were measured.
    high: upper end of the interval, NaN as `low`.
    count: number of independent units: the groups (prompts) that were
      resampled, or the items of a proportion.
  """

  value: float
  low: float
  high: float
  count: int

  def to_json(self) -> dict[str, float | int]:
    """Returns {"value", "low", "high", "count"}.

    A NaN stays NaN: `RunFolder.write_summary` makes it null and counts it.
    """
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, entry: Mapping[str, Any]) -> "Estimate":
    """The inverse of `to_json`; null is NaN, and other keys are left alone."""
    value, low, high = (
      math.nan if entry.get(name) is None else float(entry[name])
      for name in ("value", "low", "high")
    )
    return cls(value, low, high, int(entry.get("count") or 0))

  def format(self, digits: int = 3) -> str:
    """The estimate for reading, such as `0.160 [0.096, 0.241]`.

    Args:
      digits: significant digits of the width of the interval. All three
        numbers are written to that decimal place.

    Returns:
      `VALUE [LOW, HIGH]`; `VALUE [no interval]` where an end is not finite; a
      dash where the value is NaN.
    """
    if math.isnan(self.value):
      return "–"
    width = self.high - self.low
    if not math.isfinite(width):
      return f"{format_number(self.value)} [no interval]"
    largest = max(abs(self.low), abs(self.high))
    if width <= 0 or not 1e-4 <= largest < 1e6:
      value, low, high = map(format_number, (self.value, self.low, self.high))
    else:
      places = digits - 1 - math.floor(math.log10(width))
      places = min(max(places, 0), 8)
      value, low, high = (
        f"{round(number, places) + 0.0:.{places}f}".replace("-", "−")
        for number in (self.value, self.low, self.high)
      )
    return f"{value} [{low}, {high}]"


def as_estimate(entry: Estimate | Mapping[str, Any] | None) -> Estimate | None:
  """The estimate that a summary holds, whether stored or not; None is None."""
  return Estimate.from_json(entry) if isinstance(entry, Mapping) else entry


UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


def format_number(value: float, digits: int = 4) -> str:
  """A number for reading, with a true minus and without trailing zeros.

  Args:
    value: an integer keeps all its digits, in groups of three.
    digits: significant digits of a number that is not an integer.

  Returns:
    Such as `12 345`, `0.1235`, `1.2·10⁻⁵`; a dash for NaN.
  """
  if isinstance(value, int):
    text = f"{value:,}".replace(",", "\u202f")  # narrow space
  elif math.isnan(value):
    return "–"
  elif math.isinf(value):
    text = "∞" if value > 0 else "-∞"
  else:
    value += 0.0  # no negative zero
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if value and not -4 <= power < 6:
      text = mantissa.rstrip("0").rstrip(".") + (
        f"·10{str(power).translate(_SUPERSCRIPT)}"
      )
    else:
      text = f"{value:.{max(digits - 1 - power, 0)}f}"
      text = text.rstrip("0").rstrip(".") if "." in text else text
  return text.replace("-", "−")
