"""What a suite measured, as Markdown tables in a page of the documentation.

A page has places between `<!-- NAME -->` and `<!-- end of NAME -->`; what
stands there is made by a command and is replaced whole.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxprune import files
from jaxprune.report import marks


def replace(path: str | os.PathLike, name: str, text: str) -> None:
  """Put text in its place in a page.

  Args:
    path: the page.
    name: of the place.
    text: Markdown.

  Raises:
    ValueError: the page has no such place.
  """
  page = pathlib.Path(path).read_text(encoding="utf-8")
  page = _between(path, page, name, text)
  files.atomic_write_text(pathlib.Path(path), page)


def _between(path, page, name, text) -> str:
  """The page with text between its marks."""
  begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
  try:
    return marks.replace_between(page, begin, end, f"\n{text.strip()}\n")
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def check_places(path: str | os.PathLike, names: Iterable[str]) -> None:
  """Refuse, before anything is measured, a page that cannot take it.

  Args:
    path: the page.
    names: of the places that will be filled.

  Raises:
    ValueError: there is no such page, or it lacks a place.
  """
  try:
    page = pathlib.Path(path).read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"--page={path}: {files.reason(error)}") from error
  for name in names:
    _between(path, page, name, "")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table; numbers have three figures, None is empty.

  Args:
    columns: their names.
    rows: a cell for each column.
  """
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in lines)


def _cell(value):
  if value is None:
    return ""
  if isinstance(value, float):
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
  return str(value)


def of_cpu(summary: dict[str, Any]) -> str:
  """The table of the suite `cpu`.

  Args:
    summary: of `cpu.measure`.
  """
  rows = [
    (
      name,
      entry["reference_seconds"],
      entry["seconds"],
      entry["ratio"],
      entry["processor_ratio"],
      entry["floor_seconds"],
      entry["first_call_seconds"],
      _gigabytes(entry.get("reference_peak_bytes")),
      _gigabytes(entry.get("peak_bytes")),
    )
    for name, entry in summary.items()
    if isinstance(entry, dict)
  ]
  stages = [
    (
      name,
      *(
        entry.get(f"{side}{stage}_seconds")
        for stage in ("statistics", "masks", "second_forward")
        for side in ("reference_", "")
      ),
    )
    for name, entry in summary.items()
    if isinstance(entry, dict) and "masks_seconds" in entry
  ]
  text = (
    f"Model {summary['model']}; products at"
    f" {summary['flops_per_second'] / 1e9:.0f} Gflop/s, memory at"
    f" {summary['bytes_per_second'] / 1e9:.0f} GB/s; torch"
    f" {summary['torch']}.\n\n"
    + table(
      (
        *("work", "PyTorch, s", "jaxprune, s", "ratio", "processor ratio"),
        *("floor, s", "first call, s", "PyTorch, peak GB", "jaxprune, peak GB"),
      ),
      rows,
    )
  )
  if stages:
    text += "\n\n" + table(
      (
        *("stages, s", "statistics, PyTorch", "jaxprune"),
        *("masks, PyTorch", "jaxprune", "second pass, PyTorch", "jaxprune"),
      ),
      stages,
    )
  return text


def _gigabytes(count):
  return None if count is None else count / 1e9


def of_growth(summary: dict[str, Any]) -> str:
  """The table of the suite `scaling`.

  Args:
    summary: of `growth.measure`.
  """
  return table(
    ("work", "size", "from", "to", "exponent", "of the arithmetic", "because"),
    [
      (
        name,
        axis,
        entry["values"][0],
        entry["values"][-1],
        entry["exponent"],
        entry["expected"],
        entry["reason"],
      )
      for name, axes in summary.items()
      for axis, entry in axes.items()
    ],
  )


def of_accelerator(summary: dict[str, Any]) -> str:
  """The table of the suite `gpu`.

  Args:
    summary: of `accelerator.measure`.
  """
  columns = ("work", "seconds", "tokens per second", "fraction of the limit")
  rows = [
    (
      name,
      entry["seconds"],
      entry.get("tokens_per_second"),
      next((v for k, v in entry.items() if k.endswith("_fraction")), None),
    )
    for name, entry in summary.items()
    if isinstance(entry, dict)
  ]
  return (
    f"{summary['shape']} on {summary['device']}, {summary['sequences']} x"
    f" {summary['length']} calibration tokens; float32"
    f" {summary['float32_flops'] / 1e12:.1f} and bfloat16"
    f" {summary['bfloat16_flops'] / 1e12:.1f} Tflop/s, memory"
    f" {summary['bytes_per_second'] / 1e9:.0f} GB/s; peak"
    f" {summary['peak_bytes'] / 1e9:.1f} GB.\n\n" + table(columns, rows)
  )


def pod_place(shape: str, topology: str) -> str:
  """Name of the place of a model on a slice.

  Args:
    shape: of the model, such as llama3-8b.
    topology: of the slice, such as v5e:2x4.
  """
  return f"tpu {shape} {topology}"


def of_pods(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
  """The tables of the suite `tpu`, by their places: one per model and slice.

  Args:
    rows: of `pods.measure.measure`.
  """
  columns = (
    *("program", "arguments, GB", "outputs, GB", "temporary, GB"),
    *("beside, GB", "in all, GB", "Tflop", "links, GB", "collectives"),
    *("at least, s", "bound by", "runs per layer", "compiled in, s"),
  )
  groups: dict[tuple[str, str], list] = {}
  for row in rows:
    groups.setdefault((row["shape"], row["topology"]), []).append(row)
  parts = {}
  for (shape, topology), members in groups.items():
    mesh = members[0]["mesh"]
    parts[pod_place(shape, topology)] = (
      f"### {shape} on {topology}\n\nMesh data:{mesh['data']},"
      f"model:{mesh['model']}; {members[0]['sequences']} x"
      f" {members[0]['length']} calibration tokens.\n\n"
      + table(columns, [_pod_row(row) for row in members])
    )
  return parts


def _pod_row(row):
  if "error" in row:
    return (row["program"], *[None] * 10, "does not compile", None)
  seconds = {k: row[f"{k}_seconds"] for k in ("matrix", "memory", "links")}
  collectives = ", ".join(
    f"{count} {kind}" for kind, count in row["collectives"].items()
  )
  whole = f"{row['chip_bytes'] / 1e9:.2f}"
  return (
    row["program"],
    row["argument_bytes"] / 1e9,
    (row["output_bytes"] - row["alias_bytes"]) / 1e9,
    row["temporary_bytes"] / 1e9,
    row["resident_bytes"] / 1e9,
    whole if row["fits"] else f"{whole}, too large",
    row["flops"] / 1e12,
    sum(row["link_bytes"].values()) / 1e9,
    collectives,
    row["least_seconds"],
    max(seconds, key=seconds.get),
    row["runs"],
    row["compile_seconds"],
  )


OF = {"cpu": of_cpu, "gpu": of_accelerator, "scaling": of_growth}
