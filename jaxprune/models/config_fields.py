"""What does each key of a config.json do to the model?

A key is one of these:
  read       taken by the code of a family, which checks its value;
  inert      declared by the stock configuration class, of no effect on the
             arithmetic done here (dropout, labels, cache, dtype);
  refused    it changes the arithmetic, or needs code that is not here;
  ignored    not declared by the stock class, so that stock code does not read
             it either. The configuration says which these were.
All problems of a file are reported together, in one line.

Reference: the configuration classes of transformers 5. What they declare is
kept in stock_fields.json, made by `python tests/stock_fields.py`.
Differs from the reference in: duplicate keys, NaN and Infinity are errors, and
so are files of more than `MAX_BYTES` bytes or `MAX_DEPTH` levels; a key that
asks for another arithmetic is an error though stock code may not read it.
"""

import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune import files
from jaxprune.models import config_keys
from jaxprune.models.activations import STOCK_NAMES

MAX_BYTES = 1 << 22
MAX_DEPTH = 64
MAX_LAYERS = 10_000
# Ids, widths and positions are int32 on devices.
MAX_INT = (1 << 31) - 1


@functools.cache
def _stock() -> dict[str, Any]:
  file = pathlib.Path(__file__).with_name("stock_fields.json")
  return json.loads(file.read_text(encoding="utf-8"))


def stock_theta(family: str) -> float:
  """Return the base of RoPE that stock takes where config.json has none."""
  return _stock()["families"][family]["theta"]


def read_object(file: str | os.PathLike) -> dict[str, Any]:
  """Read a small JSON object.

  Args:
    file: of at most MAX_BYTES bytes.

  Returns:
    Its content.

  Raises:
    ValueError: one line that names the file: it is too large or too deep, not
      JSON, not an object, has a key twice, or holds NaN or an infinity.
  """
  file = pathlib.Path(file)
  try:
    with open(file, "rb") as stream:
      content = stream.read(MAX_BYTES + 1)
  except OSError as error:
    raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
  if len(content) > MAX_BYTES:
    raise ValueError(f"{file}: more than {MAX_BYTES} bytes is no configuration")
  try:
    value = json.loads(
      content.decode("utf-8"),
      object_pairs_hook=_without_duplicates,
      parse_constant=_no_constant,
    )
    files.check_characters(value)
  except RecursionError:
    raise ValueError(f"{file}: nested deeper than {MAX_DEPTH} levels") from None
  except ValueError as error:
    reason = files.reason(error)
    raise ValueError(f"{file}: not JSON: {reason}") from None
  if not isinstance(value, dict):
    raise ValueError(
      f"{file}: holds {type(value).__name__}, not an object; give a JSON object"
    )
  return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for name, value in pairs:
    if name in result:
      raise ValueError(f"the key {label(name)} is there twice")
    result[name] = value
  return result


def _no_constant(name: str):
  raise ValueError(f"{name} is not JSON")


def is_positive(value: Any) -> bool:
  """Return whether `value` is a finite number above zero."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  try:
    return math.isfinite(value) and value > 0
  except OverflowError:  # an integer of more digits than a float holds
    return False


class Fields:
  """Takes the fields out of one JSON object and collects what is wrong.

  Attributes:
    name: of the file, for messages.
    family: whose stock class is asked, once it is known.
    values: what nobody has taken yet.
    problems: one text per field that is wrong.
    ignored: names of the keys that have no effect, known after `finish`.
  """

  def __init__(self, name: str, values: Mapping[str, Any]):
    """Start with all of `values` untaken.

    Raises:
      ValueError: they are nested deeper than MAX_DEPTH levels.
    """
    _check_depth(name, values)
    self.name = name
    self.values = {
      key if isinstance(key, str) else repr(key): value
      for key, value in values.items()
    }
    self.problems: list[str] = []
    self.ignored: list[str] = []
    self.family: str | None = None
    self._declared: dict[str, list] = {}
    self._synonyms: dict[str, str] = {}

  def of_family(self, family: str) -> None:
    """Take types and defaults from the stock class of `family` from now on.

    A field may have a second name; where both are there, stock sets the
    declared one first.
    """
    self.family = family
    self._declared = _stock()["families"][family]["fields"]
    self._synonyms = _stock()["families"][family]["synonyms"]
    for synonym, field in self._synonyms.items():
      if synonym in self.values:
        value = self.values.pop(synonym)
        if self.values.get(field, value) != value:
          self.ignored.append(field)
        self.values[field] = value

  def declares(self, field: str) -> bool:
    """Return whether the stock class of the family has this field."""
    return field in self._declared

  def may_be_null(self, field: str) -> bool:
    """Return whether the stock class allows null in this field."""
    return "None" in self._declared.get(field, ("", None))[0].split(" | ")

  def problem(self, field: str, value: Any, why: str) -> None:
    """Note that `field` cannot be read.

    Args:
      field: its name.
      value: what it holds; the note shows the beginning.
      why: what would be right.
    """
    field = self._synonyms.get(field, field)
    self.problems.append(f"{label(field)}={_text(value)}: {why}")

  def check_whole_heads(
    self, embed_dim: int | None, num_heads: int | None
  ) -> None:
    """Note that the width of the model is no multiple of its heads.

    Args:
      embed_dim: D; None where it is wrong already.
      num_heads: N; the same.
    """
    if embed_dim and num_heads and embed_dim % num_heads:
      self.problem(
        "hidden_size",
        embed_dim,
        f"must be a multiple of num_attention_heads={num_heads}",
      )

  def peek(self, field: str) -> Any:
    """Return the value of a field, or stock's default where it is absent."""
    field = self._synonyms.get(field, field)
    default = self._declared.get(field, (None, None))[1]
    return self.values.get(field, default)

  def take(self, field: str) -> Any:
    """Return what `peek` returns, and mark the field as read."""
    value = self.peek(field)
    self.values.pop(self._synonyms.get(field, field), None)
    return value

  def take_int(
    self, field: str, least: int = 1, most: int = MAX_INT
  ) -> int | None:
    """Return a field that must be an integer.

    Args:
      field: its name.
      least: lowest value allowed.
      most: highest value allowed.

    Returns:
      The integer, or None where it is not one, which is noted.
    """
    value = self.take(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      self.problem(field, value, f"must be an integer of at least {least}")
    elif value > most:
      self.problem(field, value, f"must be an integer of at most {most}")
    else:
      return value
    return None

  def take_positive(self, field: str) -> float | None:
    """Return a field that must be a positive number; None where it is not."""
    value = self.take(field)
    if is_positive(value):
      return float(value)
    self.problem(field, value, "must be a positive number")
    return None

  def take_bool(self, field: str) -> bool:
    """Return a field that must be true or false; False where it is not."""
    value = self.take(field)
    if not isinstance(value, bool):
      self.problem(field, value, "must be true or false")
      return False
    return value

  def take_activation(self, field: str) -> str | None:
    """Return the name here of an activation function of stock.

    Args:
      field: its name; the value is one of `activations.STOCK_NAMES`.

    Returns:
      A key of `activations.FUNCTIONS`, or None where the function is not
      known, which is noted.
    """
    value = self.take(field)
    if isinstance(value, str) and value in STOCK_NAMES:
      return STOCK_NAMES[value]
    self.problem(field, value, f"known are {', '.join(STOCK_NAMES)}")
    return None

  def take_id(self, field: str) -> int | None:
    """Return a field that must be a token id or null; None where it is not."""
    value = self.take(field)
    return as_id(value) if self.check_id(field, value) else None

  def check_id(self, field: str, value: Any) -> bool:
    """Return whether `value` is a token id or None; where not, note it."""
    fits = value is None or (
      isinstance(value, int)
      and not isinstance(value, bool)
      and -MAX_INT <= value <= MAX_INT
    )
    if not fits:
      self.problem(field, value, "must be a token id or null")
    return fits

  def finish(
    self, refused: Mapping[str, tuple[tuple[Any, ...], str]] | None = None
  ) -> None:
    """Judge what was not taken, then report everything that is wrong.

    Args:
      refused: further keys that ask for another arithmetic in this family,
        with the values that do not, and why they are refused.

    Raises:
      ValueError: one line with all problems.
    """
    refused = config_keys.REFUSED | dict(refused or {})
    known = config_keys.KNOWN.union(_stock()["generation"])
    methods = frozenset(_stock()["attributes"])
    for field, value in self.values.items():
      if field in refused:
        neutral, why = refused[field]
        if not any(value is v or _equal(value, v) for v in neutral):
          self.problem(field, value, why)
        elif field not in self._declared:
          self.ignored.append(label(field))
      elif field in self._declared:
        self._check_declared(field, value)
      elif field in methods:
        self.problem(
          field, value, "the name of a method of stock transformers, not a key"
        )
      elif field not in known:
        self.ignored.append(label(field))
    if self.problems:
      raise ValueError(f"{self.name}: {'; '.join(self.problems)}")

  def _check_declared(self, field: str, value: Any) -> None:
    kind, default = self._declared[field]
    if field not in config_keys.INERT:
      if not _equal(value, default):
        self.problem(field, value, f"only {json.dumps(default)} is supported")
    elif kind and not any(_is_a(value, part) for part in kind.split(" | ")):
      self.problem(field, value, f"must be {kind.replace(' | ', ' or ')}")


def as_id(value: int | None) -> int | None:
  """Return a token id; old checkpoints write -1 for "there is none"."""
  return None if value is None or value < 0 else value


def _is_a(value: Any, kind: str) -> bool:
  if kind == "float":
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if kind == "int":
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, {"bool": bool, "str": str}.get(kind, type(None)))


def _equal(value: Any, other: Any) -> bool:
  """Return whether two JSON values are the same; true is not 1 here."""
  return isinstance(value, bool) == isinstance(other, bool) and value == other


def _check_depth(name: str, value: Any) -> None:
  """Refuse what is nested so deep that comparing or writing it would fail."""
  level = [value]
  for _ in range(MAX_DEPTH):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, Mapping) else outer)
      if isinstance(inner, (Mapping, list, tuple))
    ]
    if not level:
      return
  raise ValueError(f"{name}: nested deeper than {MAX_DEPTH} levels")


def label(field: str) -> str:
  """Return the name of a key on one line, and not too long."""
  if field.isprintable() and len(field) <= 80:
    return field
  return f"{field!a:.80}"


def _text(value: Any) -> str:
  try:
    text = repr(value)
  except ValueError:  # an integer of more digits than Python prints
    text = f"({type(value).__name__})"
  return text if len(text) < 100 else text[:97] + "..."


def read_folder(folder: str | os.PathLike) -> Fields:
  """The fields of the config.json of a checkpoint folder.

  Raises:
    ValueError: there is none, or it is not as `read_object` wants it.
  """
  file = pathlib.Path(folder) / "config.json"
  if not file.is_file():
    raise ValueError(
      f"{folder}: no config.json there; give a Hugging Face checkpoint folder"
    )
  return Fields(str(file), read_object(file))
