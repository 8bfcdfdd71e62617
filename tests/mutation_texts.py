"""Changed texts: what a plain reading has, or one clear line."""

import csv
import gzip
import json
import math
import pathlib

import numpy as np
from mutation_judges import Judge, World

from jaxprune import calibration
from jaxprune.calibration import documents, prompts, tokens
from jaxprune.evaluation import multiple_choice
from jaxprune.studies.tasks import retrieval_data


def make_worlds(folder: pathlib.Path, model: pathlib.Path) -> list[World]:
  """Write the inputs.

  Args:
    folder: is made.
    model: whose tokenizer reads them.
  """
  folder.mkdir()
  texts = [f"the cat {i} sat on the mat" * 3 for i in range(12)]
  rows = [{"text": text, "id": i} for i, text in enumerate(texts)]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  contents = {
    "plain.txt": "\n\n".join(texts).encode(),
    "rows.jsonl": lines.encode(),
    "list.json": json.dumps(rows).encode(),
    "rows.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
    "plain.txt.gz": gzip.compress("\n\n".join(texts).encode(), mtime=0),
  }
  for name, content in contents.items():
    (folder / name).write_bytes(content)
  _write_packed(folder, rows)
  ids = np.arange(32).reshape(4, 8)
  np.savez(folder / "ids.npz", calibration=ids, prompt=ids)
  asked = [
    {"context": text, "options": ["a cat", "a mat"], "answer": i % 2}
    for i, text in enumerate(texts)
  ]
  (folder / "asked.jsonl").write_text(
    "".join(json.dumps(a) + "\n" for a in asked)
  )
  tokenizer = calibration.load_tokenizer(model)
  read = {
    "calibration": _calibration_judge(tokenizer),
    "prompts": _prompts_judge(tokenizer),
  }
  packed = ("rows.parquet", "rows.jsonl.zst")
  files_of = tuple(folder / name for name in (*contents, *packed, "ids.npz"))
  return [
    *(
      World(name=name, files=files_of, judge=judge)
      for name, judge in read.items()
    ),
    World(
      name="questions", files=(folder / "asked.jsonl",), judge=_questions_judge
    ),
    *_retrieval_worlds(folder),
  ]


def _write_packed(folder, rows) -> None:
  """The rows in files that pyarrow unpacks."""
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.table({name: [r[name] for r in rows] for name in rows[0]})
  pyarrow.parquet.write_table(table, folder / "rows.parquet")
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  with pyarrow.output_stream(folder / "rows.jsonl.zst") as file:
    file.write(lines.encode())


def plain_texts(path: pathlib.Path) -> list[str]:
  """The field `text` of each entry, read in the plainest way."""
  if path.suffix == ".parquet":
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).column("text").to_pylist()
  content = path.read_bytes()
  if path.suffix == ".gz":
    content = gzip.decompress(content)
  elif path.suffix == ".zst":
    import pyarrow

    with pyarrow.input_stream(path) as file:
      content = file.read()
  text = content.decode("utf-8-sig")
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  lines = [line for line in text.split("\n") if line.strip()]
  if lines[0].lstrip().startswith("["):
    entries = json.loads(text)
  else:
    entries = [json.loads(line) for line in lines]
  return [e if isinstance(e, str) else e["text"] for e in entries]


def _calibration_judge(tokenizer) -> Judge:
  def judge(file):
    draw = tokens.Draw(num_samples=2, seq_len=8)
    known = tokens.Vocabulary(eos_id=1, size=320)
    found = tokens.read_calibration(file, tokenizer, draw, known)
    if file.suffix == ".npz":
      with np.load(file) as archive:
        same = np.array_equal(found.tokens, archive["calibration"])
      return None if same else "other ids"
    texts = documents.read_documents(file)
    if ".txt" not in file.name and texts != plain_texts(file):
      return "other documents"
    whole = [calibration.encode(tokenizer, text) for text in texts]
    for row in found.tokens.tolist():
      if not any(_is_within(row, ids) for ids in whole):
        return "a sequence of no document"
    return None

  return judge


def _is_within(row, ids) -> bool:
  return any(
    ids[i : i + len(row)] == row for i in range(len(ids) - len(row) + 1)
  )


def _prompts_judge(tokenizer) -> Judge:
  def judge(file):
    if file.name.startswith("plain") or file.suffix in (".npz", ".parquet"):
      found = prompts.read_prompts(file, tokenizer, vocab_size=320)
      return None if found.tokens else "no prompts"
    found = prompts.read_prompts(file, tokenizer, vocab_size=320)
    whole = [calibration.encode(tokenizer, t) for t in plain_texts(file)]
    same = [list(row) for row in found.tokens] == whole
    return None if same else "other prompts"

  return judge


def _questions_judge(file) -> str | None:
  found = multiple_choice.read_questions(file)
  rows = [
    json.loads(line) for line in file.read_bytes().split(b"\n") if line.strip()
  ]
  expected = [
    (str(row["context"]), tuple(map(str, row["options"])), row["answer"])
    for row in rows
  ]
  same = [(q.context, q.options, q.answer) for q in found] == expected
  return None if same else "other questions"


def write_beir(folder: pathlib.Path) -> pathlib.Path:
  """Write a collection in the layout of BEIR; returns its folder."""
  (folder / "qrels").mkdir(parents=True)
  for name, letter in (("corpus", "d"), ("queries", "q")):
    rows = [
      {"_id": f"{letter}{i}", "title": "cat", "text": f"the cat {i} sat"}
      for i in range(5)
    ]
    (folder / f"{name}.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )
  (folder / "qrels" / "test.tsv").write_text(
    "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td3\t1\nq2\td2\t1\nq4\td1\t0\n"
  )
  return folder


def _retrieval_worlds(folder) -> list[World]:
  """The layout of BEIR, Cranfield, and sentence pairs."""
  beir, cranfield = write_beir(folder / "beir"), folder / "cranfield"
  cranfield.mkdir()
  entries = [f".I {i}\n.T\na cat\n.W\nthe cat {i} sat\n" for i in (1, 2, 3)]
  (cranfield / "cran.all.1400").write_text("".join(entries))
  (cranfield / "cran.qry").write_text("".join(entries[:2]))
  (cranfield / "cranqrel").write_text("1 1 2\n1 3 -1\n2 2 1\n")
  pairs = folder / "pairs.tsv"
  pairs.write_text(
    "score\tsent1\tsent2\n"
    + "".join(f"{i}.5\tcat {i}\tmat {i}\n" for i in range(4))
  )
  judges = {
    "beir": (tuple(beir.rglob("*.*l*")), lambda file: _beir_judge(beir)),
    "cranfield": (
      tuple(cranfield.iterdir()),
      lambda file: _odd_collection(retrieval_data.read_collection(cranfield)),
    ),
    "pairs": ((pairs,), _pairs_judge),
  }
  return [
    World(name=name, files=tuple(sorted(files)), judge=judge)
    for name, (files, judge) in judges.items()
  ]


def _odd_collection(found) -> str | None:
  """What no measure can be made of."""
  if not (found.documents and found.queries and any(found.qrels)):
    return "nothing is asked"
  if len(found.qrels) != len(found.queries):
    return "not a judgement for each query"
  relevances = [v for qrels in found.qrels for v in qrels.values()]
  if not all(map(math.isfinite, relevances)):
    return "a relevance that is not finite"
  places = {place for qrels in found.qrels for place in qrels}
  return None if max(places) < len(found.documents) else "no such document"


def _lines(path) -> list[str]:
  text = path.read_text(encoding="utf-8-sig")
  return text.removesuffix("\n").split("\n")


def _beir_judge(folder) -> str | None:
  """As the loader of BEIR reads it."""
  found = retrieval_data.read_collection(folder)
  odd = _odd_collection(found)
  if odd:
    return odd
  corpus, queries = (
    {row["_id"]: row for row in map(json.loads, _lines(folder / name))}
    for name in ("corpus.jsonl", "queries.jsonl")
  )
  qrels: dict[str, dict[str, float]] = {}
  with open(folder / "qrels" / "test.tsv", newline="") as file:
    lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  for query, document, relevance in lines[1:]:
    qrels.setdefault(query, {})[document] = float(relevance)
  texts = [
    f"{row.get('title') or ''} {row['text']}".strip() for row in corpus.values()
  ]
  if found.documents != texts:
    return "other documents"
  asked = [name for name in queries if name in qrels]
  if found.queries != [queries[name]["text"] for name in asked]:
    return "other queries"
  names = list(corpus)
  judged = [
    {names[place]: value for place, value in each.items()}
    for each in found.qrels
  ]
  return None if judged == [qrels[n] for n in asked] else "other judgements"


def _pairs_judge(file) -> str | None:
  found = retrieval_data.read_pairs(str(file))
  if not all(map(math.isfinite, found.scores)):
    return "a score that is not finite"
  if not all(isinstance(t, str) for t in found.first + found.second):
    return "a text that is none"
  rows = _lines(file)[1:]
  first = [row.split("\t")[1] for row in rows if row]
  return None if found.first == first else "other texts"
