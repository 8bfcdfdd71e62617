"""What does a compiled program move, read from the compiler's own text?

XLA's cost analysis counts the body of a loop once. Here every instruction
counts as often as it runs, for loops whose trips are known.

A slice counts as what is sliced, not as what it is sliced from, in fusions too.
Bytes are those of one chip.
"""

import collections
import dataclasses
import math
import re

_WIDTHS = {
  **{"pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5},
  **{"s16": 2, "u16": 2, "bf16": 2, "f16": 2},
  **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
  r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\[(\d+),(\d+)\]|\{\{([\d,]+)\})")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# What moves nothing by itself.
_FREE = {
  *("parameter", "tuple", "get-tuple-element", "bitcast", "constant"),
  *("while", "conditional", "call", "after-all", "partition-id", "iota"),
  *("opt-barrier", "copy-done", "async-done", "async-update", "copy-start"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """A line of the text.

  Attributes:
    name: without the percent sign.
    type: text of the result's type.
    kind: opcode.
    operands: names.
    rest: text after the operands; of a parameter its index, of a constant its
      value.
    root: whether it is the result of its computation.
  """

  name: str
  type: str
  kind: str
  operands: tuple[str, ...]
  rest: str
  root: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """What one chip moves in one run.

  Attributes:
    memory: bytes read from and written to memory.
    links: bytes sent to other chips, by kind of collective.
    counts: collectives that run, by kind.
    flops: multiplications and additions of matrix products.
    passes: the same, each times the passes of the matrix unit that its
      precision takes: 1 for bfloat16, 3 for high, 6 for highest.
  """

  memory: float
  links: dict[str, float]
  counts: dict[str, int]
  flops: float
  passes: float


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Split the text of a module.

  Args:
    text: of a compiled module.

  Returns:
    The instructions by computation, and the name of the first computation.
  """
  computations, entry, body = {}, "", []
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      body = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
      continue
    found = _LINE.match(line)
    if found:
      body.append(_instruction(found))
  return computations, entry


def _instruction(found) -> Instruction:
  text = found[3]
  end = _type_end(text)
  kind, _, rest = text[end:].strip().partition("(")
  inside, after = _arguments(rest)
  return Instruction(
    name=found[2],
    type=text[:end],
    kind=kind.strip(),
    operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
    rest=inside if kind.strip() in ("parameter", "constant") else after,
    root=bool(found[1]),
  )


def _type_end(text):
  """Where the type ends: at a space outside of all brackets."""
  depth = 0
  for i, letter in enumerate(text):
    depth += letter in "([{"
    depth -= letter in ")]}"
    if letter == " " and not depth:
      return i
  return len(text)


def _arguments(rest):
  depth = 1
  for i, letter in enumerate(rest):
    depth += letter == "("
    depth -= letter == ")"
    if not depth:
      return rest[:i], rest[i + 1 :]
  return rest, ""


def arrays(type_: str) -> list[tuple[tuple[int, ...], float]]:
  """Shape and bytes of every array of a type that lies in main memory."""
  found = []
  for dtype, sizes, layout in _ARRAY.findall(type_):
    if dtype not in _WIDTHS or "S(" in layout:
      continue
    shape = tuple(int(size) for size in sizes.split(",") if size)
    found.append((shape, _WIDTHS[dtype] * math.prod(shape)))
  return found


def _bytes(type_):
  return sum(size for _, size in arrays(type_))


def count(text: str) -> Traffic:
  """Count what a program moves and multiplies.

  Args:
    text: of the compiled module, `Compiled.as_text()`.
  """
  return _Counter(*parse(text)).run()


class _Counter:
  """Walks over the computations, as often as they run."""

  def __init__(self, computations, entry):
    self._bodies, self._entry = computations, entry
    self._named = {
      name: {line.name: line for line in body}
      for name, body in computations.items()
    }
    self._memory = self._flops = self._passes = 0.0
    self._links = collections.Counter()
    self._counts = collections.Counter()

  def run(self) -> Traffic:
    self._walk(self._entry, 1, True)
    return Traffic(
      memory=self._memory,
      links=dict(self._links),
      counts=dict(self._counts),
      flops=self._flops,
      passes=self._passes,
    )

  def _walk(self, name, times, counts_memory):
    for line in self._bodies.get(name, ()):
      fused = line.kind in ("fusion", "async-start", "custom-call")
      inner = counts_memory and not fused
      repeat = self._trips(line) if line.kind == "while" else 1
      for called in _called(line):
        if "to_apply" in line.rest and line.kind != "call":
          continue  # the sum of a reduction
        self._walk(called, times * repeat, inner)
      self._multiply(name, line, times)
      self._send(name, line, times)
      if counts_memory and line.kind not in _FREE:
        self._memory += times * self._moved(name, line)

  def _trips(self, line):
    """How often a loop runs: as it says, or by the bound of its counter.

    The compiler for TPUs says nothing; counters begin at 0. A loop that ends
    by its data counts once.
    """
    said = _TRIPS.search(line.rest)
    if said:
      return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
    body = self._bodies.get(condition[1], ()) if condition else ()
    for test in body:
      if test.root and test.kind == "compare" and "=LT" in test.rest:
        bound = self._named[condition[1]].get(test.operands[1])
        if bound is not None and bound.kind == "constant":
          return int(bound.rest)
    return 1

  def _moved(self, name, line):
    """Bytes that an instruction reads and writes."""
    if line.kind in _SLICES:
      return 2 * _bytes(line.type)
    if line.kind == "dynamic-update-slice":
      return 2 * _bytes(self._type(name, line.operands[1]))
    if line.kind != "fusion":
      return _bytes(line.type) + sum(
        _bytes(self._type(name, operand)) for operand in line.operands
      )
    called = _called(line)[0]
    read = sum(
      min(_bytes(self._type(name, operand)), self._read(called, index))
      for index, operand in enumerate(line.operands)
    )
    return read + self._written(called, line)

  def _type(self, name, operand):
    line = self._named[name].get(operand)
    return line.type if line else ""

  def _read(self, name, index):
    """Bytes that a fused computation reads of one of its parameters."""
    body = self._bodies[name]
    parameter = next(
      (
        line
        for line in body
        if line.kind == "parameter" and _parameter(line) == index
      ),
      None,
    )
    if parameter is None:
      return math.inf
    users = [line for line in body if parameter.name in line.operands]
    total = 0.0
    for user in users:
      if user.kind in _SLICES:
        total += _bytes(user.type)
      elif user.kind == "dynamic-update-slice":
        if user.operands[0] != parameter.name:
          return math.inf
      elif user.kind == "fusion":
        total += self._read(
          _called(user)[0], user.operands.index(parameter.name)
        )
      else:
        return math.inf
    return total

  def _written(self, name, line):
    """Bytes that a fused computation writes."""
    root = next((each for each in self._bodies[name] if each.root), None)
    while root is not None and root.kind == "bitcast":
      root = self._named[name].get(root.operands[0])
    if root is not None and root.kind == "dynamic-update-slice":
      return _bytes(self._type(name, root.operands[1]))
    return _bytes(line.type)

  def _multiply(self, name, line, times):
    if line.kind not in ("convolution", "dot"):
      return
    made, left, right = (
      _shape(each)
      for each in (
        line.type,
        *(self._type(name, operand) for operand in line.operands[:2]),
      )
    )
    contracted = _contracted(line, left, right)
    flops = 2.0 * times * math.prod(made) * contracted
    precision = re.search(r"operand_precision=\{(\w+)", line.rest)
    self._flops += flops
    passes = {"highest": 6, "high": 3}.get(precision[1] if precision else "", 1)
    single = "f32" in self._type(name, line.operands[0])
    self._passes += flops * (passes if single else 1)

  def _send(self, name, line, times):
    kind = line.kind.removesuffix("-start")
    if kind not in _COLLECTIVES:
      return
    sizes = [size for _, size in _any_arrays(line.type)] or [0.0]
    size = max(sizes) if line.kind.endswith("-start") else sum(sizes)
    ways = _ways(line.rest)
    share = (ways - 1) / ways
    if kind == "all-reduce" and "all-reduce-scatter" in name:
      kind = "reduce-scatter"
      sent = size * share
    elif kind == "reduce-scatter":
      sent = size * (ways - 1)
    elif kind == "all-reduce":
      sent = 2 * size * share
    elif kind == "collective-permute":
      sent = size
    else:
      sent = size * share
    self._links[kind] += times * sent
    self._counts[kind] += times


def _any_arrays(type_):
  """As `arrays`, on-chip memory too."""
  return arrays(re.sub(r"S\(\d+\)", "", type_))


def _shape(type_):
  found = _ARRAY.search(type_)
  return (
    tuple(int(size) for size in found[2].split(",") if size) if found else ()
  )


def _called(line):
  names = _CALLED.findall(line.rest)
  for group in _BRANCHES.findall(line.rest):
    names += [name.strip().lstrip("%") for name in group.split(",")]
  return names


def _parameter(line):
  """Index of a parameter; its number stands where operands would."""
  found = re.match(r"(\d+)", line.rest)
  return int(found[1]) if found else -1


def _contracted(line, left, right):
  """How many products are summed for one entry of the result."""
  if line.kind == "dot":
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    axes = [int(axis) for axis in found[1].split(",") if axis] if found else []
    return math.prod(left[axis] for axis in axes)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
  if not labels:
    return 1
  window = re.search(r"window=\{size=([\dx]+)([^}]*)\}", line.rest)
  spatial = [int(size) for size in window[1].split("x")] if window else []
  # A dilated window is how a batch of products is written: of each window one
  # place meets data.
  if window and ("lhs_dilate" in window[2] or "rhs_dilate" in window[2]):
    spatial = [1]
  return right[labels[2].index("i")] * math.prod(spatial)


def _ways(rest):
  """Chips that take part in one collective."""
  found = _MESH_GROUPS.search(rest)
  if found:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(
      int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2])
    )
  found = _GROUPS.search(rest)
  if not found:
    return 2
  return int(found[2]) if found[2] else found[3].count(",") + 1
