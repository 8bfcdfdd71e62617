"""What must come of a changed input: what stock makes of it, or one clear line.

A `World` is a folder of inputs, the files of it that are changed, and a judge
that reads them as the scripts do and compares with an independent reading. A
judge returns what is wrong, or nothing; what it raises must be clear.
"""

import contextlib
import dataclasses
import gzip
import json
import os
import pathlib
import random
import signal
import traceback
from collections.abc import Callable

import mutations
import numpy as np
import safetensors.numpy

from experiments import failures
from jaxprune import calibration, checkpoints, files
from jaxprune.calibration import documents, prompts, tokens
from jaxprune.checkpoints import folders, shards
from jaxprune.evaluation import journal, multiple_choice
from jaxprune.models import ModelConfig
from jaxprune.report import records, run_stage

SECONDS = 10.0  # for one input
Judge = Callable[[pathlib.Path], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """Inputs of one kind.

  Attributes:
    name: of the kind.
    files: those that are changed, one at a time.
    judge: reads the world with the changed file; says what is wrong.
  """

  name: str
  files: tuple[pathlib.Path, ...]
  judge: Judge


class HangError(BaseException):
  """An input took too long."""


def try_one(world: World, draw: random.Random) -> str | None:
  """Change a file of a world and read it.

  Args:
    world: the inputs.
    draw: what is changed.

  Returns:
    What is wrong; None where all is as it should be.
  """
  file = draw.choice(world.files)
  before = file.read_bytes()
  file.write_bytes(mutations.mutate(before, file.name, draw))
  try:
    with _limited():
      wrong = world.judge(file)
  except HangError:
    wrong = f"took more than {SECONDS:.0f} s"
  except BaseException as error:
    wrong = unclear(error, file)
  finally:
    file.write_bytes(before)
  return wrong and f"{world.name}: {file.name}: {wrong}"


def unclear(error: BaseException, file: pathlib.Path) -> str | None:
  """What an error does not say; None where a person knows what to do.

  Args:
    error: that reading raised.
    file: that was changed.
  """
  said = failures.explain(error)
  place = traceback.extract_tb(error.__traceback__)[-1]
  shown = (
    f"{said[:300]!r} at {pathlib.Path(place.filename).name}:{place.lineno}"
  )
  if failures.is_fault(error) or said.startswith("unexpected"):
    return f"unclear: {shown}"
  if "\n" in said.strip() or len(said) > 1500:
    return f"not one line: {shown}"
  named = (file.name, file.parent.name)
  return None if any(n in said for n in named) else f"names no file: {shown}"


@contextlib.contextmanager
def _limited():
  def stop(number, frame):
    raise HangError

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def make_worlds(home: pathlib.Path) -> list[World]:
  """Write all inputs.

  Args:
    home: an empty folder.
  """
  model = save_model(home / "model")
  return [
    _config_world(model),
    _weights_world(model),
    _tokenizer_world(model),
    _masks_world(home / "masks"),
    *_text_worlds(home / "texts", model),
    _records_world(home / "rows"),
    _run_world(home / "run"),
    _checked_world(home / "checked"),
    _journal_world(home / "journal"),
  ]


def save_model(folder: pathlib.Path) -> pathlib.Path:
  """A tiny Llama in two shards, with a tokenizer."""
  import faults
  import tokenizers

  faults.save_model(
    folder.parent,
    folder=folder.name,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_size=16,
    vocab_size=320,
    shard="20KB",
  )
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(["the cat sat on the mat " * 3] * 9, trainer)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
  )
  tokenizer.save(os.fspath(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
      }
    )
  )
  return folder


def _config_world(model) -> World:
  plain = checkpoints.open_checkpoint(model).config

  def judge(file):
    source = checkpoints.open_checkpoint(model)
    config, _ = checkpoints.load_params(source)
    if config == plain:
      return None
    return _unlike_stock(model, config)

  return World(
    name="config",
    files=(model / "config.json", model / "generation_config.json"),
    judge=judge,
  )


def _unlike_stock(model: pathlib.Path, config: ModelConfig) -> str | None:
  """In what a configuration differs from the reading of stock."""
  import hf_models
  import test_config_properties
  import transformers

  from jaxprune.models import rope

  fields = json.loads((model / "config.json").read_bytes())
  theirs = transformers.AutoConfig.for_model(
    fields.pop("model_type"),
    **test_config_properties.as_strict("llama", fields),
  )
  ends = transformers.GenerationConfig.from_pretrained(model).eos_token_id
  ends = ends if isinstance(ends, list) else [ends]
  pairs = {
    "layers": (config.num_layers, theirs.num_hidden_layers),
    "embed": (config.embed_dim, theirs.hidden_size),
    "mlp": (config.mlp_dim, theirs.intermediate_size),
    "heads": (config.num_heads, theirs.num_attention_heads),
    "kv": (config.num_kv_heads, theirs.num_key_value_heads),
    "head": (config.head_dim, theirs.head_dim),
    "vocabulary": (config.vocab_size, theirs.vocab_size),
    "positions": (config.max_positions, theirs.max_position_embeddings),
    "eps": (config.norm_eps, theirs.rms_norm_eps),
    "tied": (config.tie_embeddings, theirs.tie_word_embeddings),
    "bias": (config.qkv_bias, theirs.attention_bias),
    "mlp bias": (config.mlp_bias, theirs.mlp_bias),
    "ends": (
      config.eos_ids,
      tuple(e for e in ends if e is not None and e >= 0),
    ),
  }
  wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
  if wrong:
    return f"not as stock: {wrong}"
  if theirs.hidden_act not in (config.activation, "silu", "swish"):
    from jaxprune.models.activations import STOCK_NAMES

    if STOCK_NAMES[theirs.hidden_act] != config.activation:
      return f"not as stock: {config.activation}, {theirs.hidden_act}"
  rotary = hf_models.stock_rotary(theirs)
  ours = rope.inv_freq(config, 1, config.rope)
  if not np.allclose(ours, rotary.inv_freq.numpy(), rtol=2e-6):
    return "another RoPE than stock"
  return None


def _weights_world(model) -> World:
  index = model / folders.INDEX

  def judge(file):
    source = checkpoints.open_checkpoint(model)
    checkpoints.load_params(source)
    listed = json.loads(index.read_bytes())["weight_map"]
    stock = {}
    for shard in set(listed.values()):
      stock |= safetensors.numpy.load_file(model / shard)
    for name, tensor in source.tensors.items():
      mine = shards.view(tensor)
      theirs = stock[name]
      if mine.dtype != theirs.dtype or mine.tobytes() != theirs.tobytes():
        return f"{name} is not what stock reads"
      if not np.isfinite(mine.astype(np.float32)).all():
        return f"{name} is not finite"
    return None

  return World(
    name="weights",
    files=(index, *sorted(model.glob("*.safetensors"))),
    judge=judge,
  )


PROBES = ("the cat", "", " a  b\n", "<s>x</s>", "é漢😀\0", "THE MAT" * 9)


def _tokenizer_world(model) -> World:
  def read():
    tokenizer = calibration.load_tokenizer(model)
    special = calibration.special_tokens(model, tokenizer)
    calibration.adds_bos(tokenizer)
    return [calibration.encode(tokenizer, text) for text in PROBES], special

  plain, counted = read(), [0]

  def judge(file):
    found = read()
    counted[0] += 1
    # Stock is slow: of those that changed nothing, one in ten is compared.
    if found == plain and counted[0] % 10:
      return None
    return _unlike_stock_ids(model, found)

  return World(
    name="tokenizer",
    files=(model / "tokenizer.json", model / "tokenizer_config.json"),
    judge=judge,
  )


def _unlike_stock_ids(model, found) -> str | None:
  import transformers

  try:
    stock = transformers.AutoTokenizer.from_pretrained(model)
    ids = [stock(text)["input_ids"] for text in PROBES]
    ends = stock.bos_token_id, stock.eos_token_id
  except BaseException:  # noqa: BLE001
    return None  # stock reads less than we do; there is nothing to compare with
  ours, special = found
  if ours != ids:
    return f"ids {ours} are {ids} in stock"
  if (special.bos_id, special.eos_id) != ends:
    return f"{special} is {ends} in stock"
  return None


def _masks_world(folder) -> World:
  draw = np.random.default_rng(0)
  masks = {"mlp": {"up": draw.random((2, 4, 6)) < 0.5}}
  file = folder / "masks.safetensors"
  folder.mkdir()
  checkpoints.write_masks(file, masks, {"method": "wanda"})

  def judge(path):
    found, _ = checkpoints.read_masks(file)
    same = np.array_equal(found["mlp"]["up"], masks["mlp"]["up"])
    return None if same else "other masks"

  return World(name="masks", files=(file,), judge=judge)


def _text_worlds(folder, model) -> list[World]:
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
  files_of = tuple(folder / name for name in (*contents, "ids.npz"))
  return [
    *(
      World(name=name, files=files_of, judge=judge)
      for name, judge in read.items()
    ),
    World(
      name="questions", files=(folder / "asked.jsonl",), judge=_questions_judge
    ),
  ]


def plain_texts(path: pathlib.Path) -> list[str]:
  """The field `text` of each entry, read in the plainest way."""
  content = path.read_bytes()
  if path.name.endswith(".gz"):
    content = gzip.decompress(content)
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
    if file.name == "plain.txt.gz" or file.suffix == ".npz":
      found = prompts.read_prompts(file, tokenizer, vocab_size=320)
      return None if found.tokens else "no prompts"
    found = prompts.read_prompts(file, tokenizer, vocab_size=320)
    if ".txt" in file.name:
      return None
    whole = [calibration.encode(tokenizer, t) for t in plain_prompts(file)]
    same = [list(row) for row in found.tokens] == whole
    return None if same else "other prompts"

  return judge


def plain_prompts(path: pathlib.Path) -> list[str]:
  """Prompts, read in the plainest way."""
  return plain_texts(path)


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


def _records_world(folder) -> World:
  folder.mkdir()
  rows = [{"layer": i, "kl": 0.5 * i, "task": "x"} for i in range(9)]
  file = folder / "records.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def judge(path):
    found = records.read_records(folder)
    whole = file.read_bytes().split(b"\n")[:-1]
    return (
      None if found == [json.loads(line) for line in whole] else "other rows"
    )

  return World(name="records", files=(file,), judge=judge)


DESCRIPTION = {
  "made_by": "jaxprune",
  "flags": {"sparsity": 0.5, "seeds": [0]},
  "seeds": {"calibration": [0]},
  "calibration": {"hash": "a"},
  "versions": {"jax": "1"},
  "device": {"platform": "cpu", "kind": "cpu"},
}


def _finished_run(folder) -> None:
  with run_stage.stage_run(folder, DESCRIPTION) as (stage, _):
    with records.RunFolder(stage.new, DESCRIPTION) as run:
      run.write_all([{"layer": i, "kl": 0.5 * i} for i in range(9)])
      run.write_summary({"kl": 1.0})


def _run_world(folder) -> World:
  """The same run again: it is finished, or one line says what is changed."""
  _finished_run(folder)

  def judge(file):
    plain = files.read_json(folder / records.RUN)
    try:
      with run_stage.stage_run(folder, DESCRIPTION):
        return "is run again over what is there"
    except run_stage.FinishedError:
      if plain["flags"] != DESCRIPTION["flags"]:
        return "another run is taken for this one"
      return None if _is_as_written(folder, file) else "damage is not seen"

  names = ("run.json", "records.jsonl", "summary.json", "checksums.json")
  return World(
    name="run", files=tuple(folder / name for name in names), judge=judge
  )


def _is_as_written(folder, file) -> bool:
  """Whether a changed file says the same as before, as far as is known."""
  if file.name == files.CHECKSUMS:
    return (
      True  # a checksum that is gone, or has another name, is not asked for
    )
  return file.read_bytes() == (folder.parent / "kept" / file.name).read_bytes()


def _checked_world(folder) -> World:
  """Results that another script reads."""
  _finished_run(folder)
  names = ("records.jsonl", "summary.json")
  kept = {name: (folder / name).read_bytes() for name in names}

  def judge(file):
    content = files.read_checked(file)
    return None if content == kept[file.name] else "damage is not seen"

  return World(
    name="checked", files=tuple(folder / name for name in names), judge=judge
  )


def _journal_world(folder) -> World:
  folder.mkdir()
  file = folder / "answers-model.jsonl"
  answers = {f"key {i}": [i, 0.25 * i] for i in range(6)}
  with journal.Journal(file, {"model": "a"}) as kept:
    for key, value in answers.items():
      kept.add({key: value})

  def judge(path):
    with journal.Journal(file, {"model": "a"}) as again:
      for key, value in answers.items():
        if again.get(key) not in (None, value):
          return f"another answer: {again.get(key)!r}"
    return None

  return World(name="journal", files=(file,), judge=judge)
