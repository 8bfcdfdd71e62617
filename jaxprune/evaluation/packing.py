"""How are texts laid out so that a model reads no token twice?

Requests that begin alike share their beginning: the options of a question its
context, the questions of a task their examples. They are sorted, and each
request adds the tokens in which it differs from the one before: a tree, laid
out depth first in a row (`models.Branches`). Several trees fill one row, so
that a batch has a number of tokens and not of texts, and padding stays below an
eighth of a row. The plan depends on the requests alone: what is planned twice
is read in the same rows.

Reference: Krell et al., arXiv:2107.02027, for packing; Miao et al.,
arXiv:2305.09781, for trees of tokens.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

# A beginning of fewer tokens is read again in another row.
_WORTH_SHARING = 16
# A CPU multiplies this many rows of an input at its full rate.
ROW_TOKENS = 512
_LONGEST_SHARED_ROW = 4096
_SHORTEST_ROW = 16
# A program costs about as much as reading so many tokens.
_TOKENS_OF_A_PROGRAM = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Trees that are read together.

  Attributes:
    requests: indices of the requests whose answers are scored here.
    length: tokens of the row, padding included.
    tokens: ids, [n <= length].
    positions: of each token in its own text, int32 [n].
    ends: where what follows each token ends, int32 [n].
    places: slots whose next token is scored, int32 [R], ascending.
    targets: ids that are scored after each place, int32 [R, U], -1 for none.
    reads: of each request, the index of the place and of the target of each
      token of its answer, int32 [2, tokens of the answer].
  """

  requests: tuple[int, ...]
  length: int
  tokens: np.ndarray
  positions: np.ndarray
  ends: np.ndarray
  places: np.ndarray
  targets: np.ndarray
  reads: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """A request as it is read.

  Attributes:
    ids: context and answer, of which the last token is not read.
    answer: how many tokens at the end are the answer.
    group: texts of one number are read in one row.
  """

  ids: tuple[int, ...]
  answer: int
  group: int


def round_up(length: int) -> int:
  """The next length that is compiled, at most an eighth longer."""
  length = max(length, _SHORTEST_ROW)
  step = 1 << max(length.bit_length() - 4, 0)
  return -(-length // step) * step


def plan(
  texts: Sequence[Text], row_tokens: int = ROW_TOKENS, *, apart: bool = False
) -> list[Row]:
  """Lay texts out in rows.

  Args:
    texts: at least one.
    row_tokens: tokens that a row has, more where texts are longer or share
      much.
    apart: whether every text has a row to itself and shares nothing.

  Returns:
    Rows, the longest first. Rows of one length need one program.
  """
  bins = (
    [[index] for index in range(len(texts))]
    if apart
    else _fill(_pieces(texts, row_tokens))
  )
  rows = [_row(texts, members) for members in bins]
  lengths = _lengths([len(row.tokens) for row in rows])
  rows = [
    dataclasses.replace(row, length=length)
    for row, length in zip(rows, lengths)
  ]
  return sorted(rows, key=lambda row: (-row.length, min(row.requests)))


def _pieces(texts, row_tokens) -> list[tuple[int, int, list[int]]]:
  """(tokens, capacity of a row, texts) of what is not divided further."""
  groups: dict[int, list[int]] = {}
  for index, text in enumerate(texts):
    groups.setdefault(text.group, []).append(index)
  ordered = [
    sorted(members, key=lambda index: texts[index].ids[:-1])
    for members in groups.values()
  ]
  ordered.sort(key=lambda members: texts[members[0]].ids[:-1])
  pieces = []
  for cluster in _clusters(texts, ordered):
    shared = [
      _shared(texts[left[-1]].ids[:-1], texts[right[0]].ids[:-1])
      for left, right in zip(cluster, cluster[1:])
    ]
    capacity = row_tokens
    if shared:
      much = min(4 * int(np.median(shared)), _LONGEST_SHARED_ROW)
      capacity = max(row_tokens, round_up(much))
    piece: list[int] = []
    for members in cluster:
      longer = piece + members
      if piece and _size(texts, longer) > capacity:
        pieces.append((_size(texts, piece), capacity, piece))
        longer = members
      piece = longer
    pieces.append((_size(texts, piece), capacity, piece))
  return pieces


def _clusters(texts, ordered) -> Iterator[list[list[int]]]:
  """Neighbouring groups that begin alike."""
  cluster: list[list[int]] = []
  for members in ordered:
    if cluster:
      alike = _shared(
        texts[cluster[-1][-1]].ids[:-1], texts[members[0]].ids[:-1]
      )
      if alike < _WORTH_SHARING:
        yield cluster
        cluster = []
    cluster.append(members)
  if cluster:
    yield cluster


def _fill(pieces) -> list[list[int]]:
  """Best fit, the largest piece first."""
  bins: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (tokens left, bin), ascending
  for size, capacity, members in sorted(
    pieces, key=lambda piece: (-piece[0], min(piece[2]))
  ):
    at = bisect.bisect_left(room, (size, -1))
    if at < len(room):
      left, index = room.pop(at)
      bins[index] += members
    else:
      left, index = max(capacity, round_up(size)), len(bins)
      bins.append(list(members))
    bisect.insort(room, (left - size, index))
  return bins


def _lengths(sizes) -> list[int]:
  """A length for each row, few enough that programs pay."""
  lengths = [round_up(size) for size in sizes]
  kinds = sorted(set(lengths), reverse=True)
  becomes = {}
  for kind in kinds:
    larger = becomes.get(kinds[kinds.index(kind) - 1], kind)
    saved = (larger - kind) * lengths.count(kind)
    becomes[kind] = larger if saved < _TOKENS_OF_A_PROGRAM else kind
  return [becomes[length] for length in lengths]


def _row(texts, members) -> Row:
  """The tree of some texts, depth first."""
  order = sorted(members, key=lambda index: texts[index].ids[:-1])
  tokens: list[int] = []
  positions: list[int] = []
  ends: list[int] = []
  path: list[int] = []
  before: tuple[int, ...] = ()
  places: dict[int, list[int]] = {}
  reads = {}
  for index in order:
    text = texts[index]
    read = text.ids[:-1]
    alike = _shared(before, read)
    for slot in path[alike:]:
      ends[slot] = len(tokens)
    path = path[:alike] + [
      len(tokens) + offset for offset in range(len(read) - alike)
    ]
    tokens += read[alike:]
    positions += range(alike, len(read))
    ends += [0] * (len(read) - alike)
    before = read
    pairs = []
    for slot, target in zip(path[-text.answer :], text.ids[-text.answer :]):
      targets = places.setdefault(slot, [])
      if target not in targets:
        targets.append(target)
      pairs.append((slot, targets.index(target)))
    reads[index] = pairs
  for slot in path:
    ends[slot] = len(tokens)
  slots = sorted(places)
  at = {slot: place for place, slot in enumerate(slots)}
  width = max(map(len, places.values()))
  table = np.full((len(slots), width), -1, np.int32)
  for slot, targets in places.items():
    table[at[slot], : len(targets)] = targets
  return Row(
    requests=tuple(order),
    length=0,
    tokens=np.array(tokens, np.int32),
    positions=np.array(positions, np.int32),
    ends=np.array(ends, np.int32),
    places=np.array(slots, np.int32),
    targets=table,
    reads=tuple(
      np.array([(at[slot], target) for slot, target in reads[index]]).T
      for index in order
    ),
  )


def _size(texts, members) -> int:
  """Tokens of the tree of some texts."""
  size, before = 0, ()
  for read in sorted(texts[index].ids[:-1] for index in members):
    size += len(read) - _shared(before, read)
    before = read
  return size


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
  """Tokens that two texts have in common from their beginning."""
  low, high = 0, min(len(one), len(other))
  while low < high:
    middle = (low + high + 1) // 2
    alike = one[low:middle] == other[low:middle]
    low, high = (middle, high) if alike else (low, middle - 1)
  return low
