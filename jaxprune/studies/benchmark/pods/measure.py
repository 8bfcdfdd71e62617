"""Compile the programs of a model for a pod, and read what the compiler says.

Reference: XLA's memory analysis of a compiled program, per chip.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jaxprune import devices, platforms
from jaxprune.studies.benchmark import shapes
from jaxprune.studies.benchmark.pods import chips, hlo, programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is compiled.

  Attributes:
    shapes: of `shapes.NAMES`.
    chips: of `chips.CHIPS`.
    count: chips of each slice, one number per shape.
    programs: names, or the first words of them; none is all.
    sequences: of calibration.
    length: tokens of each.
    cached: tokens that a decoding step reads.
  """

  shapes: tuple[str, ...]
  chips: tuple[str, ...]
  count: tuple[int, ...]
  programs: tuple[str, ...] = ()
  sequences: int = 128
  length: int = 2048
  cached: int = 8192


def check(settings: Settings) -> None:
  """Refuse what cannot be compiled here.

  Raises:
    ValueError: an unknown shape, chip or number of chips, or no compiler.
  """
  if len(settings.count) != len(settings.shapes):
    raise ValueError(
      f"{len(settings.count)} numbers of chips for {len(settings.shapes)}"
      " shapes: give one for each"
    )
  for chip in settings.chips:
    for count in settings.count:
      chips.topology(chip, count)
  for shape in settings.shapes:
    shapes.config(shape)
  if not has_compiler():
    raise ValueError(
      "the compiler for TPUs is not installed: pip install 'jaxprune[tpu]'"
    )


def read_counts(texts: Sequence[str]) -> tuple[int, ...]:
  """Numbers of chips, of text.

  Raises:
    ValueError: one is no number.
  """
  if not all(text.isdecimal() for text in texts):
    raise ValueError(f"count={','.join(texts)}: use numbers such as 8,256")
  return tuple(map(int, texts))


def has_compiler() -> bool:
  """Whether programs for TPUs can be compiled here; nothing is loaded."""
  return importlib.util.find_spec("libtpu") is not None


def measure(
  settings: Settings, folder: str | os.PathLike, say: Callable[[str], None]
) -> list[dict[str, Any]]:
  """Compile every program that has no row yet.

  Args:
    settings: what is compiled.
    folder: takes `pods.jsonl`, a row as soon as it is there; rows that are
      there are not made again.
    say: takes a line per program.

  Returns:
    The rows of these settings, in their order.
  """
  check(settings)
  path = pathlib.Path(folder) / "pods.jsonl"
  done = {}
  if path.is_file():
    for line in path.read_text(encoding="utf-8").splitlines():
      row = json.loads(line)
      done[row["shape"], row["topology"], row["program"]] = row
  rows = []
  with platforms.compiling_for("tpu"), path.open("a") as file:
    for shape, chip, name in slices(settings):
      mesh = make_mesh(name, settings.sequences)
      case = make_case(settings, shape, mesh)
      for program, entry in programs.list_programs(case).items():
        if not _wanted(settings, program):
          continue
        row = done.get((shape, name, program))
        if row is None:
          row = {
            "shape": shape,
            "topology": name,
            "program": program,
            "mesh": dict(case.mesh.shape),
            "sequences": settings.sequences,
            "length": settings.length,
            **compile_program(entry, chips.CHIPS[chip]),
          }
          file.write(json.dumps(row) + "\n")
          file.flush()
          say(line_of(row))
        rows.append(row)
  return rows


def slices(settings: Settings) -> list[tuple[str, str, str]]:
  """Shape, chip and topology of everything that is compiled, in order.

  Args:
    settings: what is compiled.

  Raises:
    ValueError: an unknown chip or number of chips.
  """
  return [
    (shape, chip, chips.topology(chip, count))
    for shape, count in zip(settings.shapes, settings.count, strict=True)
    for chip in settings.chips
  ]


def make_mesh(topology: str, sequences: int) -> jax.sharding.Mesh:
  """The mesh of a slice that need not be there.

  Args:
    topology: from `chips.topology`.
    sequences: of calibration.
  """
  found = topologies.get_topology_desc(topology, "tpu").devices
  return devices.make_mesh(chips.mesh_sizes(len(found), sequences), found)


def make_case(
  settings: Settings, shape: str, mesh: jax.sharding.Mesh
) -> programs.Case:
  """A model on a mesh.

  Args:
    settings: of the run.
    shape: of `shapes.NAMES`.
    mesh: the chips.
  """
  return programs.Case(
    config=shapes.config(shape),
    mesh=mesh,
    sequences=settings.sequences,
    length=settings.length,
    batch=mesh.shape["data"],
    cached=settings.cached,
  )


def _wanted(settings, program):
  return not settings.programs or any(
    program.startswith(name) for name in settings.programs
  )


def compile_program(
  program: programs.Program, chip: chips.Chip
) -> dict[str, Any]:
  """Compile one program.

  Args:
    program: what is compiled.
    chip: for which.

  Returns:
    Bytes per chip, seconds of compilation, what moves and the least seconds of
    a run; or `error`, where the compiler refuses it.
  """
  began = time.monotonic()
  try:
    compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    return {
      "fits": False,
      "error": str(error).strip().splitlines()[0][:300],
      "compile_seconds": time.monotonic() - began,
    }
  seconds = time.monotonic() - began
  return {"compile_seconds": seconds, **describe(compiled, program, chip)}


def describe(
  compiled: Any, program: programs.Program, chip: chips.Chip
) -> dict[str, Any]:
  """What a compiled program takes, on one chip.

  Args:
    compiled: of `jax.stages`.
    program: what was compiled.
    chip: for which.
  """
  memory = compiled.memory_analysis()
  traffic = hlo.count(compiled.as_text())
  cost = compiled.cost_analysis() or {}
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  seconds = {
    "matrix": traffic.passes / chip.flops,
    "memory": traffic.memory / chip.hbm_rate,
    "links": sum(traffic.links.values()) / chip.link_rate,
  }
  return {
    "fits": bool(held + program.resident <= chip.hbm_bytes),
    "argument_bytes": memory.argument_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes,
    "alias_bytes": memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "resident_bytes": float(program.resident),
    "chip_bytes": float(held + program.resident),
    "flops": traffic.flops,
    "matrix_passes_flops": traffic.passes,
    "flops_of_compiler": cost.get("flops", 0.0),
    "memory_traffic_bytes": traffic.memory,
    "link_bytes": traffic.links,
    "collectives": traffic.counts,
    "runs": program.runs,
    **{f"{name}_seconds": value for name, value in seconds.items()},
    "least_seconds": max(seconds.values()),
  }


def line_of(row: dict[str, Any]) -> str:
  """A row for the person who waits."""
  head = f"{row['shape']:13s} {row['topology']:10s} {row['program']:26s}"
  if "error" in row:
    return f"{head} does not compile: {row['error']}"
  return (
    f"{head} {row['chip_bytes'] / 1e9:6.2f} GB a chip, of which temporary"
    f" {row['temporary_bytes'] / 1e9:.2f}   at least"
    f" {row['least_seconds']:.4f} s   compiled in"
    f" {row['compile_seconds']:.0f} s{'' if row['fits'] else '   TOO LARGE'}"
  )
