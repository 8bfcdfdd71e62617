"""Documents, windows and prompts against the protocols they claim to follow."""

import dataclasses
import gzip
import hashlib
import json
import random
import struct
import sys
import types

import numpy as np
import pytest
import tokenizers

from jaxprune import calibration
from jaxprune.calibration import (
  Calibration,
  Draw,
  Vocabulary,
  describe,
  load_tokenizer,
  read_documents,
  read_prompts,
  token_hash,
)

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def words():
  """A tokenizer of one id per word: w0 is 3, w1 is 4, ...; none is added."""
  vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS}
  vocabulary |= {f"w{index}": index + 3 for index in range(97)}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return made


def spell(numbers):
  return " ".join(f"w{number}" for number in numbers)


def write_lines(path, documents):
  path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
  return path


# --- documents -------------------------------------------------------------


@pytest.mark.parametrize(
  "division, text, expected",
  [
    ("auto", "a\nb\n\n \t\nc\n", ["a\nb", "c"]),
    ("auto", "a\n\nb\n<|endoftext|>\nc<|endoftext|>\n", ["a\n\nb", "c"]),
    ("auto", "one\ntwo\n", ["one\ntwo"]),
    ("lines", "a\n\n b\x0cc \n", ["a", " b\x0cc "]),
    ("rows", " = A = \n \n b \n", [" = A = \n", "", " b \n"]),
    ("rows", "a\nb", ["a\n", "b"]),
    ("whole", "a\n\nb\n", ["a\n\nb\n"]),
  ],
)
def test_divisions(tmp_path, division, text, expected):
  path = tmp_path / "x.txt"
  path.write_text(text)
  assert read_documents(path, division=division) == expected


def test_every_format_gives_the_same_documents(tmp_path):
  texts = ["first", "", "zwei ä\n\nNeue Zeile"]
  entries = [{"text": text, "url": "x"} for text in texts]
  lines = "".join(json.dumps(entry) + "\n" for entry in entries)
  (tmp_path / "a.jsonl").write_text(lines + "\n")
  (tmp_path / "b.json").write_text(json.dumps(entries, indent=2))
  (tmp_path / "c.json.gz").write_bytes(gzip.compress(lines.encode()))
  (tmp_path / "d.json").write_text(json.dumps(texts))
  (tmp_path / "e.jsonl").write_text("\ufeff" + lines)
  for path in sorted(tmp_path.iterdir()):
    assert read_documents(path) == texts, path
  (tmp_path / "f.jsonl").write_text(lines.replace('"text"', '"body"'))
  assert read_documents(tmp_path / "f.jsonl", field="body") == texts


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.txt", b" \n\n", "no text in it"),
    ("a.txt", b"", "no text in it"),
    ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "line 2: no field text.*txt"),
    ("a.jsonl", b'{"text": "x"}\n{"text": NaN}\n', "line 2: field text is f"),
    ("a.jsonl", b'{"text": 3}\n', "field text is int"),
    ("a.jsonl", b'{"text": "x"\n', "line 1: not JSON"),
    ("a.json", b'[{"text": "x"}', "not JSON"),
    ("a.json", b"[1]", "entry 0: int is no document"),
    ("a.csv", b"text\n", "unknown format"),
    ("a.parquet.gz", b"text\n", "unknown format"),
    ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ("a.json.gz", b"plain", "cannot be read"),
    (
      "a.json.gz",
      gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-9],
      "cannot be read",
    ),
    ("a.txt", None, "no such file"),
    ("a.parquet", None, "no such file"),
  ],
)
def test_bad_documents_name_file_and_fix(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    read_documents(path)
  assert str(path) in str(caught.value)
  with pytest.raises(ValueError, match="division='x'"):
    read_documents(path, division="x")


def test_parquet(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow

  path = tmp_path / "a.parquet"
  parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), path)
  assert read_documents(path) == ["a", "b"]
  with pytest.raises(ValueError, match="no column body .it has text, n"):
    read_documents(path, field="body")
  with pytest.raises(ValueError, match="row 0: field n is int"):
    read_documents(path, field="n")
  path.write_bytes(b"x")
  with pytest.raises(ValueError, match="not readable as parquet"):
    read_documents(path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  monkeypatch.setitem(sys.modules, "datasets", None)
  (tmp_path / "a.parquet").write_bytes(b"x")
  with pytest.raises(ValueError, match="pip install.*convert the file"):
    read_documents(tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="c4: .*pip install.*local copy"):
    read_documents("c4")


def test_hub_names(monkeypatch):
  calls = []

  def load_dataset(*args, **options):
    calls.append((args, options))
    return {"text": ["", " a \n"]}

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)
  assert read_documents("wikitext2") == ["", " a \n"]
  read_documents("wikitext2", held_out=True)
  read_documents("c4")
  read_documents("c4", held_out=True)
  assert [options["split"] for _, options in calls] == [
    "train",
    "test",
    "train",
    "validation",
  ]
  assert calls[2][1]["data_files"] == {
    "train": "en/c4-train.00000-of-01024.json.gz"
  }

  def offline(*args, **options):
    raise ConnectionError("no\nroute")

  fake.load_dataset = offline
  with pytest.raises(ValueError, match="ConnectionError: no route.*local copy"):
    read_documents("c4")


# --- sampling --------------------------------------------------------------


def read_calibration(source, tokenizer=None, **options):
  """Options by name, whether they are of the draw or of the vocabulary."""
  if "vocab_size" in options:
    options["size"] = options.pop("vocab_size")
  names = {field.name for field in dataclasses.fields(Vocabulary)}
  return calibration.read_calibration(
    source,
    tokenizer,
    Draw(**{k: v for k, v in options.items() if k not in names}),
    Vocabulary(**{k: v for k, v in options.items() if k in names}),
  )


def reference_c4(documents, seed, num_samples, seq_len):
  """The published protocol, with Python's global generator."""
  state = random.getstate()
  random.seed(seed)
  rows = []
  for _ in range(num_samples):
    while True:
      ids = documents[random.randint(0, len(documents) - 1)]
      if len(ids) > seq_len:
        break
    start = random.randint(0, len(ids) - seq_len - 1)
    rows.append(ids[start : start + seq_len])
  random.setstate(state)
  return np.asarray(rows)


@pytest.mark.parametrize("seed", [0, 7])
def test_documents_draws_as_the_reference(tmp_path, words, seed):
  rng = np.random.default_rng(seed)
  documents = [rng.integers(0, 97, rng.integers(1, 14)) for _ in range(30)]
  path = write_lines(tmp_path / "a.jsonl", map(spell, documents))
  state = random.getstate()
  got = read_calibration(path, words, num_samples=40, seq_len=8, seed=seed)
  assert random.getstate() == state
  expected = reference_c4([d + 3 for d in documents], seed, 40, 8)
  np.testing.assert_array_equal(got.tokens, expected)
  assert got.tokens.dtype == np.int32
  assert (got.sampling, got.seed, got.bos) == ("documents", seed, False)
  again = read_calibration(path, words, num_samples=40, seq_len=8, seed=seed)
  assert again.hash == got.hash
  other = read_calibration(path, words, num_samples=40, seq_len=8, seed=9)
  assert other.hash != got.hash


def test_a_document_of_seq_len_is_too_short(tmp_path, words):
  path = write_lines(tmp_path / "a.jsonl", [spell(range(8)), spell(range(5))])
  with pytest.raises(
    ValueError,
    match="none of the 2 documents tried of 2 is longer than"
    r" seq_len=8 tokens \(the longest has 8\); use sampling='packed'",
  ):
    read_calibration(path, words, num_samples=1, seq_len=8)
  only = read_calibration(path, words, num_samples=3, seq_len=7).tokens
  # Of 8 tokens the reference can draw the first window of 7 only.
  np.testing.assert_array_equal(only, np.tile(np.arange(3, 10), (3, 1)))


def test_the_rejection_loop_ends(tmp_path, words, monkeypatch):
  from jaxprune.calibration import tokens

  monkeypatch.setattr(tokens, "_MAX_REJECTIONS", 5)
  documents = [spell(range(2))] * 2000 + [spell(range(20))]
  path = write_lines(tmp_path / "a.jsonl", documents)
  with pytest.raises(ValueError, match="tried of 2001.*longest has 2"):
    read_calibration(path, words, num_samples=1, seq_len=8)


def test_joined_draws_as_the_reference(tmp_path, words):
  path = tmp_path / "a.txt"
  path.write_text("w1 w2 \n\n w3 \nw4 w5 w6")
  got = read_calibration(
    path, words, num_samples=6, seq_len=3, seed=3, sampling="joined"
  )
  ids = np.arange(4, 10)
  generator = random.Random(3)
  starts = [generator.randint(0, len(ids) - 3 - 1) for _ in range(6)]
  np.testing.assert_array_equal(
    got.tokens, [ids[start : start + 3] for start in starts]
  )
  assert got.sampling == "joined"
  with pytest.raises(ValueError, match="has 6 tokens, not more than seq_len=6"):
    read_calibration(path, words, seq_len=6, sampling="joined")


def test_wikitext2_joins_the_rows_with_a_space(words, monkeypatch):
  texts = []

  class Spy:
    def encode(self, text, add_special_tokens=True):
      texts.append(text)
      return words.encode(text, add_special_tokens=add_special_tokens)

  monkeypatch.setitem(
    sys.modules,
    "datasets",
    types.SimpleNamespace(
      load_dataset=lambda *args, **options: {"text": ["", " w1 \n", "w2 w3"]}
    ),
  )
  got = read_calibration("wikitext2", Spy(), num_samples=1, seq_len=2)
  assert texts[0] == "  w1 \n w2 w3"
  assert got.sampling == "joined"


def test_packed(tmp_path, words):
  path = tmp_path / "a.txt"
  path.write_text("w1 w2\n\nw3\n\nw4 w5 w6 w7\n\nw8\n")
  got = read_calibration(
    path, words, num_samples=2, seq_len=4, sampling="packed", eos_id=EOS
  )
  np.testing.assert_array_equal(got.tokens, [[4, 5, EOS, 6], [EOS, 7, 8, 9]])
  assert got.seed is None
  with_bos = read_calibration(
    path,
    words,
    num_samples=2,
    seq_len=4,
    sampling="packed",
    eos_id=EOS,
    add_bos=True,
    bos_id=BOS,
  )
  np.testing.assert_array_equal(
    with_bos.tokens, [[BOS, 4, 5, EOS], [BOS, 6, EOS, BOS]]
  )
  assert with_bos.bos
  with pytest.raises(
    ValueError, match="4 documents have 12 tokens.*num_samples of at most 3"
  ):
    read_calibration(
      path, words, num_samples=4, seq_len=4, sampling="packed", eos_id=EOS
    )
  with pytest.raises(ValueError, match="needs eos_id"):
    read_calibration(path, words, seq_len=4, sampling="packed")


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(num_samples=0), "num_samples=0"),
    (dict(seq_len=0), "seq_len=0"),
    (dict(sampling="x"), "sampling='x'"),
    (dict(vocab_size=50), "has id 52 at .*outside the vocabulary of 50"),
    (dict(add_bos=True), "names no beginning-of-text token"),
  ],
)
def test_bad_options(tmp_path, words, options, message):
  path = write_lines(tmp_path / "a.jsonl", [spell([49] * 9)])
  options = dict(num_samples=1, seq_len=4) | options
  with pytest.raises(ValueError, match=message):
    read_calibration(path, words, **options)
  with pytest.raises(ValueError, match="needs a tokenizer"):
    read_calibration(path)


# --- ids -------------------------------------------------------------------


def test_ids_are_used_as_they_are(tmp_path):
  path = tmp_path / "ids.npz"
  ids = np.arange(12, dtype=np.int64).reshape(3, 4)
  np.savez(path, calibration=ids, prompt=ids[:1].astype(np.uint8))
  got = read_calibration(path, num_samples=1, seq_len=2, vocab_size=12)
  np.testing.assert_array_equal(got.tokens, ids)
  assert got.tokens.dtype == np.int32 and got.sampling == "given"
  prompts = read_prompts(path, vocab_size=12)
  assert prompts.tokens == ((0, 1, 2, 3),)


@pytest.mark.parametrize(
  "arrays, message",
  [
    (dict(prompt=[[1]]), r"no array calibration \(it has prompt\)"),
    (dict(), r"no array calibration \(it has none\)"),
    (dict(calibration=[1, 2]), r"shape \[2\]"),
    (dict(calibration=np.zeros((0, 4), int)), r"shape \[0, 4\]"),
    (dict(calibration=[[1.0, np.nan]]), "holds float64; .*save them as int32"),
    (dict(calibration=[[True]]), "holds bool"),
    (dict(calibration=[[1, 5]]), r"id 5 at \[0, 1\].*vocabulary of 5"),
    (dict(calibration=[[1], [-1]]), r"id -1 at \[1, 0\]"),
    (dict(calibration=np.array([[None]])), "holds object"),
  ],
)
def test_bad_ids(tmp_path, arrays, message):
  path = tmp_path / "ids.npz"
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=message) as caught:
    read_calibration(path, vocab_size=5)
  assert str(path) in str(caught.value)


def test_bad_npz_files(tmp_path):
  path = tmp_path / "ids.npz"
  with pytest.raises(ValueError, match="no such file"):
    read_calibration(path)
  path.write_bytes(b"PK broken")
  with pytest.raises(ValueError, match="not readable as .npz"):
    read_calibration(path)
  np.savez(path, calibration=np.array([[2**31]]))
  with pytest.raises(ValueError, match="outside the vocabulary of 2147483648"):
    read_calibration(path)


def test_hash_is_over_shape_and_little_endian_ids():
  ids = np.array([[1, 258], [3, 70000]])
  expected = hashlib.sha256(
    struct.pack("<2q", 2, 2) + struct.pack("<4i", 1, 258, 3, 70000)
  )
  for array in (ids, ids.astype(">i4"), np.asfortranarray(ids)):
    assert token_hash(array) == expected.hexdigest()
  assert token_hash(ids.reshape(1, 4)) != token_hash(ids)
  made = Calibration(tokens=ids, source="x")
  assert describe(made) == dict(
    source="x",
    sampling="given",
    seed=None,
    bos=None,
    sequences=2,
    length=2,
    hash=expected.hexdigest(),
  )
  assert json.loads(json.dumps(describe(made)))["length"] == 2


# --- tokenizers ------------------------------------------------------------


def test_real_corpora(shared):
  folder = shared / "data"
  own = load_tokenizer(shared / "weights" / "stories260K")
  stories = read_documents(folder / "tinystories" / "train_sample_2MiB.txt")
  assert len(stories) == 2317
  assert (
    len(
      read_documents(
        folder / "tinystories" / "valid_30KB.txt", division="lines"
      )
    )
    == 19
  )
  assert len(read_documents(folder / "c4" / "c4_demo.json")) == 300
  got = read_calibration(
    folder / "tinystories" / "train_sample_2MiB.txt",
    own,
    num_samples=8,
    seq_len=256,
    vocab_size=512,
  )
  assert got.tokens.shape == (8, 256) and got.bos
  prompts = read_prompts(
    folder / "tinystories_mcq" / "gen_prompts.jsonl", own, limit=5
  )
  assert len(prompts.tokens) == 5
  assert all(row[0] == BOS for row in prompts.tokens)
