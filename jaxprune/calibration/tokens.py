"""Which tokens may a pruning method look at?

A calibration set is an int32 matrix [sequences, length] that follows from a
source, a protocol and a seed alone; its hash goes into every result.

| sampling | a sequence is | usual for |
|---|---|---|
| documents | a random window of a random document that is longer | C4 |
| joined | a random window of all documents joined with " " | WikiText-2 |
| packed | the next tokens of all documents with EOS between | short documents |

Reference: SparseGPT (arXiv:2301.00774) and Wanda (arXiv:2306.11695), whose
draws from Python's generator are reproduced number for number ('documents',
'joined'); LLM-Drop (arXiv:2406.15786) for 'packed'.
Differs from the reference in: a corpus without a long enough document is an
error and no endless loop; the generator is local; the tail of 'packed' is
dropped, and blank documents give no token there.
"""

import dataclasses
import functools
import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxprune import devices
from jaxprune.calibration import documents, id_files
from jaxprune.calibration.tokenizer import adds_bos, encode

if TYPE_CHECKING:
  import tokenizers

SAMPLINGS = ("documents", "joined", "packed")
# How many draws in a row may find no document that is long enough. A corpus
# where one in ten thousand is long enough fails by chance less than once in
# 20,000 runs.
_MAX_REJECTIONS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
  """Token sequences with their origin.

  Attributes:
    tokens: int32 [X, T].
    source: file or data set.
    sampling: one of SAMPLINGS, or 'given' for token ids read from a file.
    seed: of the draws; None where nothing was drawn.
    bos: whether every text was given a beginning-of-text token before it was
      cut into windows; None for token ids read from a file.
  """

  tokens: np.ndarray
  source: str
  sampling: str = "given"
  seed: int | None = None
  bos: bool | None = None

  @property
  def hash(self) -> str:
    """Hexadecimal sha256 over shape and ids, see `token_hash`."""
    return token_hash(self.tokens)


def describe(calibration: Calibration) -> dict[str, str | int | bool | None]:
  """The calibration set without its tokens, for run.json."""
  sequences, length = calibration.tokens.shape
  return {
    "source": calibration.source,
    "sampling": calibration.sampling,
    "seed": calibration.seed,
    "bos": calibration.bos,
    "sequences": sequences,
    "length": length,
    "hash": calibration.hash,
  }


def token_hash(tokens: np.ndarray) -> str:
  """Hash token ids whatever the machine.

  Args:
    tokens: integers of any shape that fit int32.

  Returns:
    Hexadecimal sha256 over the shape as little-endian int64 and then the ids
    as little-endian int32 in C order.
  """
  digest = hashlib.sha256(np.asarray(tokens.shape, "<i8").tobytes())
  digest.update(np.ascontiguousarray(tokens, "<i4").tobytes())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
  """Which sequences are taken from text.

  Attributes:
    num_samples: n, number of sequences.
    seq_len: T, tokens of each.
    seed: of the draws.
    sampling: one of SAMPLINGS; None is 'joined' for the name 'wikitext2' and
      'documents' otherwise.
    division: see `documents.read_documents`; None is 'rows' for 'joined' and
      'auto' otherwise.
    field: name of the text in .json, .jsonl and .parquet files.
  """

  num_samples: int = 128
  seq_len: int = 2048
  seed: int = 0
  sampling: str | None = None
  division: str | None = None
  field: str = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """What the model says of token ids.

  Attributes:
    add_bos: whether BOS stands before each document, or before the joined
      text; None asks the tokenizer.
    bos_id: id of BOS, needed where it is added.
    eos_id: stands behind each document of 'packed'.
    size: ids must be below it; None does not check.
  """

  add_bos: bool | None = None
  bos_id: int | None = None
  eos_id: int | None = None
  size: int | None = None


def read_calibration(
  source: str | os.PathLike,
  tokenizer: "tokenizers.Tokenizer | None" = None,
  draw: Draw = Draw(),
  vocabulary: Vocabulary = Vocabulary(),
) -> Calibration:
  """Read a calibration set.

  Args:
    source: see `documents.read_documents`; or an .npz with token ids under
      `calibration` [X, T], which are used exactly as they are: only the size of
      the vocabulary matters then.
    tokenizer: from `tokenizer.load_tokenizer`.
    draw: which sequences are taken.
    vocabulary: of the model.

  Raises:
    ValueError: the source is missing, broken or too short, or an id is outside
      the vocabulary.
  """
  return next(read_seeds(source, tokenizer, draw, [draw.seed], vocabulary))


def read_seeds(
  source: str | os.PathLike,
  tokenizer: "tokenizers.Tokenizer | None",
  draw: Draw,
  seeds: Iterable[int],
  vocabulary: Vocabulary = Vocabulary(),
) -> Iterator[Calibration]:
  """Read a calibration set per seed; the source is read once.

  A document is tokenised when it is drawn first, and kept.

  Args:
    source: as for `read_calibration`.
    tokenizer: from `tokenizer.load_tokenizer`.
    draw: which sequences are taken, whatever its seed.
    seeds: of the draws.
    vocabulary: of the model.

  Yields:
    The set of each seed.

  Raises:
    ValueError: see `read_calibration`; or the sequences alone are more than the
      memory holds.
  """
  name = os.fspath(source)
  if name.endswith(".npz"):
    tokens = id_files.read_ids(name, "calibration", vocabulary.size)
    for _ in seeds:
      yield Calibration(tokens=tokens, source=name)
    return
  if tokenizer is None:
    raise ValueError(
      f"{name}: text needs a tokenizer; give one, or token ids in an .npz"
    )
  for argument in ("num_samples", "seq_len"):
    if getattr(draw, argument) < 1:
      raise ValueError(
        f"{argument}={getattr(draw, argument)}: must be at least 1"
      )
  check_room(draw.num_samples, draw.seq_len)
  sampling = draw.sampling or ("joined" if name == "wikitext2" else "documents")
  if sampling not in SAMPLINGS:
    raise ValueError(
      f"sampling={sampling!r}: must be one of {', '.join(SAMPLINGS)}"
    )
  division = draw.division or ("rows" if sampling == "joined" else "auto")
  texts = documents.read_documents(name, division=division, field=draw.field)
  if sampling == "packed" and vocabulary.eos_id is None:
    raise ValueError(
      "sampling='packed': needs eos_id, the id that ends a text, to stand"
      " between documents"
    )

  if sampling == "joined":
    texts = [" ".join(texts)]

  @functools.cache
  def ids_of(index: int) -> np.ndarray:
    text, add_bos = texts[index], vocabulary.add_bos
    return np.asarray(
      encode(tokenizer, text, add_bos, vocabulary.bos_id), np.int32
    )

  shape = (draw.num_samples, draw.seq_len)
  add_bos = vocabulary.add_bos
  for seed in seeds:
    if sampling == "packed":
      rows = _packed(texts, ids_of, vocabulary.eos_id, shape, name)
    elif sampling == "joined":
      rows = _windows(ids_of(0), shape, seed, name)
    else:
      rows = _from_documents(len(texts), ids_of, shape, seed, name)
    tokens = np.asarray(rows, np.int32)
    id_files.check_vocabulary(
      tokens, name, "the tokenizer's output", vocabulary.size
    )
    yield Calibration(
      tokens=tokens,
      source=name,
      sampling=sampling,
      seed=None if sampling == "packed" else seed,
      bos=adds_bos(tokenizer) if add_bos is None else add_bos,
    )


def check_room(
  num_samples: int, seq_len: int, *, asked: str | None = None
) -> None:
  """Refuse so many token ids that no memory of this machine holds them.

  Args:
    num_samples: sequences.
    seq_len: tokens of each.
    asked: how many, in the words of the user; None names --num_samples and
      --seq_len.

  Raises:
    ValueError: there are too many.
  """
  memory = devices.host_bytes()
  need = 3 * 4 * num_samples * seq_len  # as rows, as a matrix, and compared
  if memory is not None and need > memory:
    asked = asked or (
      f"--num_samples={num_samples} sequences of --seq_len={seq_len} tokens"
    )
    raise ValueError(
      f"{asked} need {devices.gib(need)}, there are {devices.gib(memory)}: use"
      " fewer or shorter ones"
    )


def _from_documents(count, ids_of, shape, seed, name):
  """Wanda's get_c4: same draws from the same generator."""
  num_samples, seq_len = shape
  generator = random.Random(seed)
  short, longest, rows = set(), 0, []
  while len(rows) < num_samples:
    for _ in range(_MAX_REJECTIONS):
      index = generator.randint(0, count - 1)
      if index in short:
        continue
      ids = ids_of(index)
      if len(ids) > seq_len:
        break
      short.add(index)
      longest = max(longest, len(ids))
      if len(short) == count:
        raise _too_short(name, count, longest, seq_len, len(short))
    else:
      raise _too_short(name, count, longest, seq_len, len(short))
    rows.append(_cut(ids, seq_len, generator))
  return rows


def _too_short(name, count, longest, seq_len, tried):
  return ValueError(
    f"{name}: none of the {tried} documents tried of {count} is longer"
    f" than seq_len={seq_len} tokens (the longest has {longest}); use"
    f" sampling='packed', or seq_len below {longest}"
  )


def _windows(ids, shape, seed, name):
  """Wanda's get_wikitext2."""
  num_samples, seq_len = shape
  if len(ids) <= seq_len:
    raise ValueError(
      f"{name}: the joined text has {len(ids)} tokens, not more than"
      f" seq_len={seq_len}; use more text or a smaller seq_len"
    )
  generator = random.Random(seed)
  return [_cut(ids, seq_len, generator) for _ in range(num_samples)]


def _cut(ids: Sequence[int], seq_len: int, generator: random.Random):
  # The last window is never drawn; the reference does the same.
  start = generator.randint(0, len(ids) - seq_len - 1)
  return ids[start : start + seq_len]


def _packed(texts, ids_of, eos_id, shape, name):
  num_samples, seq_len = shape
  needed = num_samples * seq_len
  ids = []
  for index, text in enumerate(texts):
    document = ids_of(index).tolist() if text.strip() else [eos_id]
    if document == [eos_id]:
      continue
    # Some tokenizers end a text by themselves.
    ids += document if document[-1:] == [eos_id] else [*document, eos_id]
    if len(ids) >= needed:
      break
  else:
    raise ValueError(
      f"{name}: {len(texts)} documents have {len(ids)} tokens, fewer than"
      f" num_samples={num_samples} x seq_len={seq_len}; use more text, or"
      f" num_samples of at most {len(ids) // seq_len}"
    )
  return np.reshape(ids[:needed], shape)
