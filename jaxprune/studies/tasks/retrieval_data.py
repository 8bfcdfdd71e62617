"""Which queries, documents, judgements and sentence pairs are there?

Reads a retrieval collection, in the layout of BEIR (corpus.jsonl,
queries.jsonl, qrels/test.tsv) or of Cranfield (cran.all.1400, cran.qry,
cranqrel), and the STS benchmark.

Reference: Cleverdon, the Cranfield 2 tests (1966); Thakur et al., BEIR,
arXiv:2104.08663; Cer et al., STS Benchmark, arXiv:1708.00055.
"""

import csv
import dataclasses
import io
import math
import pathlib

from jaxprune import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
  """A retrieval task.

  Attributes:
    name: of the folder.
    documents: texts, title and body.
    queries: texts.
    qrels: for each query, index of the document to relevance.
  """

  name: str
  documents: list[str]
  queries: list[str]
  qrels: list[dict[int, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
  """Sentence pairs that people judged.

  Attributes:
    first: texts.
    second: texts.
    scores: how similar they are.
  """

  first: list[str]
  second: list[str]
  scores: list[float]


def read_collection(folder: str) -> Collection:
  """Read a folder in either layout.

  Raises:
    ValueError: neither layout, or a file that contradicts itself.
  """
  path = pathlib.Path(folder)
  if (path / "cran.all.1400").is_file():
    found = _cranfield(path)
  elif (path / "corpus.jsonl").is_file():
    found = _beir(path)
  else:
    raise ValueError(
      f"{folder}: neither cran.all.1400 nor corpus.jsonl there; give the folder"
      " of Cranfield, or of a collection in the layout of BEIR"
    )
  if not any(found.qrels):
    raise ValueError(
      f"{folder}: no query of it has a judgement; the collection is incomplete"
    )
  return found


def read_pairs(path: str) -> Pairs:
  """Read a tab-separated file with columns score, sent1 and sent2.

  Raises:
    ValueError: no such file or column, or a score that is no number.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"{path}: no such file; give sts-test.tsv")
  lines = io.StringIO(_text(file))
  try:
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
  except csv.Error as error:
    raise ValueError(f"{path}: {error}; get the file again") from None
  columns = ("score", "sent1", "sent2")
  if not rows or any(row.get(name) is None for row in rows for name in columns):
    raise ValueError(
      f"{path}: needs rows under the columns score, sent1 and sent2"
    )
  try:
    scores = [_finite(row["score"]) for row in rows]
  except ValueError as error:
    raise ValueError(f"{path}: a score is no number ({error})") from None
  return Pairs(
    first=[row["sent1"] for row in rows],
    second=[row["sent2"] for row in rows],
    scores=scores,
  )


def _cranfield(folder: pathlib.Path) -> Collection:
  """Codes 1 (complete answer) to 4 (least) are relevant, all alike.

  Not graded, because readers of this collection disagree on which end of the
  codes is the better one. Each query has one entry of code -1, which the
  collection does not explain; it is not counted. cranqrel numbers queries by
  their order.
  """
  documents = _cran_entries(folder / "cran.all.1400")
  queries = _cran_entries(folder / "cran.qry")
  place = {number: index for index, (number, _) in enumerate(documents)}
  qrels: list[dict[int, float]] = [{} for _ in queries]
  path = folder / "cranqrel"
  for number, line in enumerate(_lines(path), 1):
    if not line.strip():
      continue
    try:
      query, document, code = map(int, line.split())
      judgements = qrels[query - 1 if query > 0 else len(qrels)]
      judgements[place[document]] = float(1 <= code <= 4)
    except (ValueError, IndexError, KeyError):
      raise ValueError(
        f"{path}: line {number}: {line!r} is not a query, a document and a"
        " code that exist; get the file again"
      ) from None
  return Collection(
    name=folder.name,
    documents=[text for _, text in documents],
    queries=[text for _, text in queries],
    qrels=qrels,
  )


def _cran_entries(path: pathlib.Path) -> list[tuple[int, str]]:
  """Number and text of each entry: field .W, which repeats the title."""
  entries: list[tuple[int, dict[str, list[str]]]] = []
  field = ""
  for line in _lines(path):
    if line.startswith(".I "):
      try:
        entries.append((int(line[3:]), {}))
      except ValueError:
        raise ValueError(
          f"{path}: {line!r:.60} has no number; get the file again"
        ) from None
    elif line in (".T", ".A", ".B", ".W"):
      field = line
    elif entries:
      entries[-1][1].setdefault(field, []).append(line.strip())
    elif line.strip():
      raise ValueError(f"{path}: text before the first .I; get the file again")
  return [
    (number, " ".join(fields.get(".W") or fields.get(".T") or []))
    for number, fields in entries
  ]


def _beir(folder: pathlib.Path) -> Collection:
  corpus = _rows(folder / "corpus.jsonl")
  documents = {
    row["_id"]: f"{row['title']} {row['text']}".strip() for row in corpus
  }
  queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
  place = {name: index for index, name in enumerate(documents)}
  relevances: dict[str, dict[int, float]] = {}
  path = folder / "qrels" / "test.tsv"
  for number, line in enumerate(_lines(path)[1:], 2):
    try:
      query, document, relevance = line.split("\t")
      queries[query]
      relevances.setdefault(query, {})[place[document]] = _finite(relevance)
    except (ValueError, KeyError):
      raise ValueError(
        f"{path}: line {number}: {line!r} is not a query, a document and a"
        " relevance that exist; get the file again"
      ) from None
  asked = [name for name in queries if name in relevances]
  return Collection(
    name=folder.name,
    documents=list(documents.values()),
    queries=[queries[name] for name in asked],
    qrels=[relevances[name] for name in asked],
  )


def _rows(path: pathlib.Path) -> list[dict]:
  rows = []
  for number, line in enumerate(_lines(path), 1):
    try:
      row = files.parse_json(line, constants=True)
      if not all(isinstance(row[name], str) for name in ("_id", "text")):
        raise TypeError
      row["title"] = str(row.get("title") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
      raise ValueError(
        f"{path}: line {number} is no object with _id and text; get the file"
        " again"
      ) from None
    rows.append(row)
  return rows


def _text(path: pathlib.Path) -> str:
  if not path.is_file():
    raise ValueError(f"{path}: no such file; the collection is incomplete")
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path}: not UTF-8 ({error.reason}); get the file again"
    ) from error


def _lines(path: pathlib.Path) -> list[str]:
  """The lines of a text; a form feed or the like ends none."""
  text = _text(path)
  return text.removesuffix("\n").split("\n") if text else []


def _finite(text: str) -> float:
  """A number that is written somewhere; a ValueError for any other text."""
  number = float(text)
  if not math.isfinite(number):
    raise ValueError(f"{text!r} is not finite")
  return number
