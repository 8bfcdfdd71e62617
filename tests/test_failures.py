"""Whatever is raised is one line, and too much is refused before it is read."""

import gzip
import json
import pathlib
import random
import re
import stat
import zipfile

import faults
import mutation_judges
import numpy as np
import pytest
import scripts

from experiments import command_line, failures
from jaxprune import calibration, devices, files
from jaxprune.calibration import documents, id_files, tokens
from jaxprune.evaluation import multiple_choice
from jaxprune.studies import inputs
from jaxprune.studies.tasks import scores


class PanicException(BaseException):
  """What code in Rust raises when it has a fault."""


def raised(error):
  try:
    raise error
  except BaseException as caught:
    return caught


def told(error, capsys) -> str:
  failures.tell(error)
  return capsys.readouterr().err


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(failures.tempfile, "tempdir", str(tmp_path / "tmp"))
  (tmp_path / "tmp").mkdir()


def ours(text):
  try:
    files.expand(f"~nosuchuser-{text}")
  except ValueError as error:
    return error


def numpys():
  try:
    np.zeros(2) + np.zeros(3)
  except ValueError as error:
    return error


@pytest.mark.parametrize(
  "make,said",
  [
    (lambda: ours("x"), "'~nosuchuser-x': no such user"),
    (numpys, "unexpected ValueError: operands could not be broadcast"),
    (lambda: raised(RecursionError("too\ndeep")), "unexpected RecursionError"),
    (lambda: raised(PanicException("no bounds")), "unexpected PanicException"),
    (lambda: raised(MemoryError()), "out of memory (MemoryError); use a small"),
    (lambda: raised(RuntimeError("RESOURCE_EXHAUSTED: x")), "out of memory"),
    (lambda: raised(OSError(13, "Denied", "/x/y")), "/x/y: Denied"),
    (lambda: raised(ModuleNotFoundError("No module", name="zz")), "BUILD.md"),
  ],
)
def test_anything_is_one_line_with_a_file(make, said, capsys, tmp_path):
  line = told(make(), capsys)
  assert line.count("\n") == 1 and line.startswith("error: ") and said in line
  path = pathlib.Path(line.rpartition("traceback: ")[2].rstrip(")\n"))
  assert path.is_relative_to(tmp_path)
  assert "Traceback (most recent call last)" in path.read_text()
  assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", [TypeError, AssertionError, KeyError])
def test_a_fault_of_the_program_shows_itself(kind, capsys):
  said = told(raised(kind("x")), capsys)
  assert said.startswith("Traceback (most recent call last)")
  assert "a fault of jaxprune, not of its input: " + kind.__name__ in said


def test_few_tracebacks_are_kept_and_none_through_a_link(tmp_path, capsys):
  for _ in range(25):
    told(raised(OSError("x")), capsys)
  (folder,) = (tmp_path / "tmp").iterdir()
  assert len(list(folder.iterdir())) == 20
  folder.rename(tmp_path / "elsewhere")
  folder.symlink_to(tmp_path / "elsewhere")
  assert told(raised(OSError("x")), capsys) == "error: x\n"
  assert len(list((tmp_path / "elsewhere").iterdir())) == 20


def test_the_flag_of_a_path_is_named(monkeypatch, tmp_path, capsys):
  class Flag:
    name, value = "out", str(tmp_path / "results")

  monkeypatch.setattr(command_line, "own_flags", lambda: [Flag])
  for path in (
    "results",
    "results/a/b",
    "results.partial/new",
    ".results.lock",
  ):
    error = raised(PermissionError(13, "Permission denied", tmp_path / path))
    line = told(error, capsys)
    assert line.startswith(
      f"error: --out={tmp_path}/results: Permission denied"
    )
  monkeypatch.setattr(Flag, "value", str(tmp_path / "file" / "below"))
  error = raised(FileExistsError(17, "File exists", str(tmp_path / "file")))
  assert f"--out={tmp_path}/file/below: File exists" in told(error, capsys)


@pytest.mark.parametrize(
  "words,said",
  [
    (["guidance", "--keep=nan"], "--keep=nan: must be finite"),
    (["evaluate", "--model= "], "--model= : is empty"),
    (["verify", "pocket", "--also=,"], "--also: one of its values is empty"),
    (["recovery_study", "--weights=1,inf"], "--weights=1,inf: give numbers"),
    (["prune", "pocket", "--group_size=" + "x" * 9000], "--group_size=xxx"),
  ],
)
def test_values_that_no_bound_keeps_out(words, said, tmp_path):
  """Some of what `faults.py --kind=flags` tries on every script."""
  done = scripts.call(*words, f"--out={tmp_path}/out")
  (line,) = done.stderr.splitlines()
  assert done.returncode == 1 and said in line and len(line) < 1000


@pytest.mark.parametrize(
  "flags,said",
  [
    (["--num_samples=10000000000"], "--num_samples=10000000000 sequences of"),
    (["--num_samples=1000000"], "needs .* activations"),
    (["--num_samples=499979", "--method=drop_mlp"], "needs .* activations"),
    (["--num_samples=499979", "--method=kl_mlp"], "needs .* activations"),
    (["--calibration=ids.npz"], "ids.npz: .*calibration has 4294967222 bytes"),
    (["--seed=" + "1" * 40], "--seed=1111"),
    (["--out=."], "holds the working directory"),
    (["--out=~nosuchuser/x"], "no such user"),
    (["--out=loop/x"], "--out=loop/x|cannot be followed"),
    (["--out=file/x"], "--out=file/x: File exists"),
  ],
)
def test_prune_refuses_before_work(flags, said, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("x")
  (tmp_path / "loop").symlink_to("loop")
  huge_ids(tmp_path / "ids.npz")
  monkeypatch.setattr(devices, "host_bytes", lambda: 1 << 34)
  given = ["--model=pocket", "--calibration=pocket", "--seq_len=256"]
  done = scripts.call("prune", *given, "--out=out", *flags)
  assert done.returncode == 1
  (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
  assert re.search(said, line), line
  assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def huge_ids(path):
  """Says 400 GB in a few bytes of zeros, and holds what it says."""
  header = b"{'descr':'<i4','fortran_order':False,'shape':(100000,1000000)}\n"
  body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("calibration.npy", body)
  # The directory of the archive says how long an entry is.
  content = bytearray(path.read_bytes())
  at = content.rindex(b"PK\x01\x02") + 24
  content[at : at + 4] = (2**32 - 1).to_bytes(4, "little")
  path.write_bytes(content)


def test_ids_that_are_not_there_are_not_made_room_for(tmp_path):
  path = tmp_path / "ids.npz"
  huge_ids(path)
  with pytest.raises(ValueError, match="ids.npz: .*calibration has"):
    id_files.read_ids(path, "calibration")
  np.savez(path, calibration=np.zeros((3, 4), np.int32))
  assert id_files.ids_shape(path, "calibration") == (3, 4)


def test_a_decompression_bomb_is_refused_with_its_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(documents, "PACKED_FREE", 10_000)
  bomb = tmp_path / "bomb.jsonl.gz"
  bomb.write_bytes(gzip.compress(b'{"text": "' + b"a" * 300_000 + b'"}\n'))
  with pytest.raises(ValueError, match="bomb.jsonl.gz: unpacks to more than"):
    documents.read_documents(bomb)
  plain = tmp_path / "plain.txt.gz"
  plain.write_bytes(gzip.compress(b"a few words\n" * 800))
  assert documents.read_documents(plain)[0].startswith("a few words")
  import pyarrow
  import pyarrow.parquet

  for name, text in (("a", "a few words\n"), ("bomb", "a" * 300_000)):
    with pyarrow.output_stream(tmp_path / f"{name}.txt.zst") as file:
      file.write(text.encode())
  assert documents.read_documents(tmp_path / "a.txt.zst") == ["a few words"]
  with pytest.raises(ValueError, match="bomb.txt.zst: unpacks to more than"):
    documents.read_documents(tmp_path / "bomb.txt.zst")
  half = tmp_path / "half.txt.zst"
  half.write_bytes((tmp_path / "a.txt.zst").read_bytes()[:-4])
  with pytest.raises(ValueError, match="half.txt.zst: cannot be read"):
    documents.read_documents(half)
  parquet = tmp_path / "bomb.parquet"
  table = pyarrow.table({"text": ["a" * 300_000] * 20})
  pyarrow.parquet.write_table(table, parquet, compression="zstd")
  with pytest.raises(ValueError, match="bomb.parquet: column text unpacks to"):
    documents.read_documents(parquet)


def test_text_that_no_memory_holds_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  path.write_text("many words " * 1000)
  monkeypatch.setattr(devices, "host_bytes", lambda: 50_000)
  with pytest.raises(ValueError, match="a.txt: 11000 bytes of text do not fit"):
    documents.read_documents(path)
  reader = calibration.load_tokenizer(inputs.shipped.FOLDER)
  with pytest.raises(ValueError, match="11000 characters .* divide it"):
    calibration.encode(reader, path.read_text())


class CountingTokenizer:
  """A tokenizer of words, which counts what it is asked."""

  def __init__(self):
    self.asked = []

  def encode(self, text, add_special_tokens=True):
    self.asked.append(text)
    encoding = type("Encoding", (), {})()
    encoding.ids = [len(word) for word in text.split()]
    return encoding


@pytest.mark.parametrize("sampling", ["documents", "joined"])
def test_a_document_is_tokenised_once(tmp_path, sampling):
  draw = random.Random(0)
  texts = ["one two three " * draw.randint(10, 20) + str(i) for i in range(5)]
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  reader = CountingTokenizer()
  wanted = tokens.Draw(num_samples=40, seq_len=8, sampling=sampling)
  first, second = tokens.read_seeds(path, reader, wanted, [0, 1])
  long = [text for text in reader.asked if text != "a"]
  assert len(long) == len(set(long)) <= 5
  again = tokens.read_calibration(path, reader, wanted)
  assert again.hash == first.hash != second.hash


def test_a_long_text_has_the_ids_of_a_short_one(monkeypatch):
  reader = calibration.load_tokenizer(inputs.shipped.FOLDER)
  text = "the words of a long text , and more of them . " * 5
  expected = calibration.encode(reader, text)
  monkeypatch.setattr(calibration.tokenizer, "_LONG", 10)
  assert calibration.encode(reader, text) == expected


@pytest.mark.parametrize(
  "text,said",
  [
    ("[" * 5000 + "]" * 5000, "nested deeper than 64 levels"),
    ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
    (r'{"a": "\ud800"}', "half of a surrogate pair"),
    (r'{"\uDFFF": 1}', "half of a surrogate pair"),
    ('{"a": NaN}', "NaN is not JSON"),
    ("{", "Expecting property name"),
  ],
)
def test_json_that_is_refused(text, said):
  with pytest.raises(ValueError, match=said):
    files.parse_json(text)


def test_json_that_is_read():
  pair = r'{"a": "\ud83d\ude00", "b": [' + "[1]," * 99 + "2]}"
  assert files.parse_json(pair)["a"] == "\U0001f600"
  assert files.parse_json("[NaN]", constants=True)[0] != 1


def test_a_lock_is_not_made_through_a_link(tmp_path):
  from jaxprune import staging

  (tmp_path / "mine").write_text("mine")
  (tmp_path / ".out.lock").symlink_to(tmp_path / "mine")
  with pytest.raises(OSError, match="[Ss]ymbolic link"):
    with staging.lock(tmp_path / "out"):
      pass
  assert (tmp_path / "mine").read_text() == "mine"


def test_answers_are_there_for_all_prompts_or_for_none(tmp_path):
  path = tmp_path / "asked.jsonl"
  path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
  assert scores.read_pairs(path, None) == (["a", "b"], None)
  path.write_text('{"prompt": "a", "answer": "x"}\n{"prompt": "b"}\n')
  with pytest.raises(ValueError, match="asked.jsonl: line 2: no field"):
    scores.read_pairs(path, None)


@pytest.mark.parametrize("options", ['"abc"', "[null, 1]", "[[], 1]", "null"])
def test_options_are_texts(tmp_path, options):
  path = tmp_path / "asked.jsonl"
  row = f'{{"context": "a", "options": {options}, "answer": 0}}'
  path.write_text(row + "\n")
  with pytest.raises(ValueError, match="asked.jsonl: line 1: TypeError"):
    multiple_choice.read_questions(path)


def test_weights_that_were_changed_are_not_worked_on(tmp_path):
  home = faults.save_model(tmp_path, num_hidden_layers=1)
  pruned = tmp_path / "pruned"
  faults.call(
    "prune", *faults.prune_flags(home, "magnitude"), f"--out={pruned}"
  )
  shard = pruned / "model.safetensors"
  content = bytearray(shard.read_bytes())
  content[-2] ^= 1
  shard.write_bytes(content)
  again = [f"--model={pruned}", "--method=magnitude", f"--out={tmp_path}/again"]
  done = scripts.call("prune", *again)
  assert done.returncode == 1 and not (tmp_path / "again").exists()
  assert "model.safetensors: is not what was written" in done.stderr
  (pruned / "jaxprune_export.json").unlink()
  faults.call("prune", *again)


def test_changed_inputs_are_read_right_or_refused_in_one_line(tmp_path):
  """A part; docs/runs.md has the figures and the command of the whole."""
  worlds = mutation_judges.make_worlds(tmp_path)
  assert not faults.mutated(worlds, range(300), seed=5)
