"""The rows of `interventions`: every intervention on every pruned model."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import batching, encode, load_tokenizer
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.pocket import documents, shipped, tasks, tokenizer, world
from jaxprune.probes import interventions
from jaxprune.probes.decoder import interventions as driver
from jaxprune.probes.decoder import logit_interventions
from jaxprune.pruning import controls
from jaxprune.studies import inputs
from jaxprune.studies.sweep import configurations
from jaxprune.studies.tasks import scores

__all__ = ["FIELDS", "Settings", "Study", "read_answers"]

READ, CONTINUED, ANSWERS = "teacher_forced", "continued", "answers"
TEMPERATURES, TOP_K, TOP_P = (0.5, 0.7, 0.85, 1.2), (5,), (0.9,)
# Interventions that are also decoded on with.
LANES = (
  "dense",
  "pruned",
  "keep_parallel",
  "keep_orthogonal",
  "keep_offset",
  "keep_centred",
  "keep_top",
  "keep_tail",
  "add_random_all",
  "half",
)
CONTROL_LANES = LANES[:2]
SCORES = ("log_prob", "hits")
_BATCH = 32  # texts read together
FIELDS = {
  "cell": report.Field("text", "", "METHOD:AMOUNT"),
  "source": report.Field(
    "text", "", "pruned, or random: as much removed at random"
  ),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
  "depth": report.Field(
    "int", "layers", "layers that h has passed, from 0 to L"
  ),
  "one_minus_cos_z_centred": report.Field(
    "float", "", "1 - cosine of the logits less their means"
  ),
  "flips": report.Field(
    "float", "", "fraction of positions with another likeliest token"
  ),
  "kl_at_flips": report.Field(
    "float", "nats", "KL(p||q) where the likeliest token changed, else 0"
  ),
  "margin_lost": report.Field(
    "float", "logits", "loss of the lead of the dense likeliest token"
  ),
  "common_steps": report.Field(
    "float", "steps", "steps before the text leaves the dense one"
  ),
  "same_text": report.Field("float", "", "1 where it never does"),
  "exact": report.Field("float", "", "1 where greedy decoding is right"),
  "exact_sampled": report.Field(
    "float", "", "probability that sampling writes the right answer"
  ),
  "hits": report.Field(
    "float", "", "fraction of answer tokens that are the likeliest"
  ),
}
# Averaged over the positions of a prompt.
POSITION_METRICS = tuple(name for name in driver.METRICS if name not in SCORES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How an intervention is measured; the flags of `interventions`."""

  max_new_tokens: int
  analysis_temperature: float = 1.0
  top_tokens: int = 10


Answers = list[tuple[tuple[int, ...], tuple[int, ...]]]


def read_answers(
  source: checkpoints.Source, name: str, *, limit: int, most: int
) -> Answers | None:
  """Ids of prompts and right answers, evenly from all that there are.

  Args:
    source: the dense model.
    name: `pocket`, whose answers end with the end of the text; a file, whose
      answers are cut to `most` tokens; or `none`.
    limit: how many.
    most: tokens of an answer from a file.

  Raises:
    ValueError: another model's answers, no answers, or too long ones.
  """
  if name == "none":
    return None
  pairs: Answers = []
  if name == "pocket":
    if not inputs.is_pocket(source):
      raise ValueError(
        f"--answers=pocket: {source.folder} does not speak the pocket model's"
        " language; give a file, or none"
      )
    reader = tokenizer.load_tokenizer(shipped.FOLDER)
    items = tasks.make_tasks(
      documents.make_index(world.make_world(shipped.WORLD_SEED)), "test"
    ).generate
    for item in items:
      prompt, answer = (
        tokenizer.encode(reader, text) for text in (item.prompt, item.answer)
      )
      pairs.append(((tokenizer.BOS, *prompt), (*answer, tokenizer.EOS)))
  else:
    texts, answers = scores.read_pairs(name, None)
    if answers is None:
      raise ValueError(f"--answers={name}: holds no answers; use none")
    reader, bos = load_tokenizer(source.folder), source.config.bos_id
    for text, answer in zip(texts, answers):
      head = encode(reader, text, bos_id=bos)
      tail = encode(reader, f"{text} {answer}", bos_id=bos)[len(head) :]
      pairs.append((tuple(head), tuple(tail[:most])))
  pick = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round()
  pairs = [pairs[int(index)] for index in pick]
  longest = max(len(head) + len(tail) for head, tail in pairs)
  if longest > source.config.max_positions:
    raise ValueError(
      f"--answers={name}: prompt and answer of {longest} tokens exceed the"
      f" context, {source.config.max_positions}: shorten them"
    )
  return pairs


class Study:
  """Reads one dense model, and measures pruned ones beside it."""

  def __init__(self, source, prompts, answers, settings, run):
    self._source, self._settings, self._run = source, settings, run
    self._config, self._params = checkpoints.load_params(source, jnp.float32)
    pad = self._config.pad_id or 0
    tokens_XT, valid_XT = prompts_lib.left_pad(prompts.tokens, pad)
    self._prompts = list(_batches(tokens_XT, valid_XT))
    self._texts = [
      _only(
        count,
        driver.dense_text(
          self._config,
          self._params,
          tokens_BT,
          valid_BT,
          num_steps=settings.max_new_tokens,
        ),
      )
      for count, tokens_BT, valid_BT in self._prompts
    ]
    self._answers = [] if answers is None else _answer_texts(answers, pad)

  def prune_and_measure(
    self,
    cell: configurations.Cell,
    seed: int,
    tokens: np.ndarray,
    work: pathlib.Path,
  ) -> None:
    """Prune into a folder, measure, and remove the folder."""
    folder = work / f"{cell.file}-seed{seed}"
    removed = configurations.prune(self._source, cell, tokens, seed, folder)
    self.measure(checkpoints.open_checkpoint(folder), cell.name, seed, removed)
    shutil.rmtree(work)

  def measure(
    self,
    pruned: checkpoints.Source,
    name: str,
    seed: int,
    removed: float | None = None,
  ) -> None:
    """Write the rows of one pruned model and of its random control."""
    pair = driver.make_pair(
      self._config, self._params, *checkpoints.load_params(pruned, jnp.float32)
    )
    random = dataclasses.replace(
      pair,
      pruned=controls.random_control(
        jax.random.key(seed), pair.params["layers"], pair.pruned
      ),
    )
    for label, each in (("pruned", pair), ("random", random)):
      common = {"cell": name, "seed": seed, "source": label, "removed": removed}
      lanes = LANES if each is pair else CONTROL_LANES
      for rows in (
        self._read(each, seed),
        self._continue(each, seed, lanes),
        self._answer(each, seed) if each is pair else self._answer_ends(each),
      ):
        self._run.write_all(common | row for row in rows)

  def _read(self, pair, seed) -> Iterator[dict[str, Any]]:
    """On the dense model's text."""
    for start, text in _numbered(self._texts):
      for name, depth, values in self._all(
        pair, text, jax.random.key(seed), POSITION_METRICS
      ):
        yield from _rows(READ, name, depth, values, text, start, self._settings)

  def _answer(self, pair, seed) -> Iterator[dict[str, Any]]:
    """On right answers; only scores."""
    for start, text in _numbered(self._answers):
      for name, depth, values in self._all(
        pair, text, jax.random.key(seed + 1), SCORES, patches=False
      ):
        yield from _score_rows(name, depth, values, text, start)

  def _answer_ends(self, pair) -> Iterator[dict[str, Any]]:
    """The same of a control: all its layers, and none."""
    ends = (0, self._config.num_layers)
    masks = interventions.first_layers(self._config.num_layers)[jnp.array(ends)]
    for start, text in _numbered(self._answers):
      h_KBRD = driver.frozen(self._config, pair, text, masks)
      values = driver.measure_states(
        self._config,
        pair,
        text,
        h_KBRD[1],
        h_KBRD,
        metrics=SCORES,
        temperature=self._settings.analysis_temperature,
      )
      for n, depth in enumerate(ends):
        yield from _score_rows(
          "freeze_first",
          depth,
          {metric: np.asarray(leaf[n]) for metric, leaf in values.items()},
          text,
          start,
        )

  def _all(self, pair, text, key, metrics, patches=True):
    """(intervention, depth, metric to [B, R]) of everything."""
    config, T = self._config, self._settings.analysis_temperature
    count = config.num_layers + 1
    measure = functools.partial(
      driver.measure_states, config, pair, text, temperature=T, metrics=metrics
    )
    first_KL = interventions.first_layers(config.num_layers)
    h_KBRD = driver.frozen(
      config, pair, text, jnp.concatenate([first_KL, ~first_KL])
    )
    # k = L frozen is the dense model, k = 0 the pruned one.
    dense_BRD, pruned_BRD = h_KBRD[count - 1], h_KBRD[0]
    found = {
      name: measure(dense_BRD, h_KBRD[part])
      for name, part in (
        ("freeze_first", slice(count)),
        ("freeze_last", slice(count, None)),
      )
    }
    if patches:
      states = driver.patched(config, pair, text, jax.random.fold_in(key, 1))
      own_BRD = states.pop("dense")[0]
      del states["pruned"]
      found |= {name: measure(own_BRD, h) for name, h in states.items()}
    for name, values in found.items():
      for depth in range(count):
        yield (
          name,
          depth,
          {metric: np.asarray(leaf[depth]) for metric, leaf in values.items()},
        )
    changed = logit_interventions.measure_changes(
      config,
      pair,
      text,
      dense_BRD,
      pruned_BRD,
      jax.random.fold_in(key, 2),
      T,
      top=self._settings.top_tokens,
      temperatures=TEMPERATURES,
      top_k=TOP_K,
      top_p=TOP_P,
      metrics=tuple(m for m in metrics if m != "one_minus_cos_h"),
    )
    for name, values in changed.items():
      yield name, None, jax.tree.map(np.asarray, values)

  def _continue(self, pair, seed, lanes) -> Iterator[dict[str, Any]]:
    """Texts that are written with a part of the change."""
    texts = zip(_numbered(self._texts), self._prompts)
    for (start, text), (_, tokens_BT, valid_BT) in texts:
      tokens, values = logit_interventions.continue_changed(
        self._config,
        pair,
        tokens_BT,
        valid_BT,
        jax.random.fold_in(jax.random.key(seed), 3),
        self._settings.analysis_temperature,
        names=lanes,
        num_steps=self._settings.max_new_tokens,
        top=self._settings.top_tokens,
      )
      values = jax.tree.map(np.asarray, values)
      for n, name in enumerate(lanes):
        leaves = {metric: leaf[n] for metric, leaf in values.items()}
        parted = np.asarray(tokens[n] != text.target)
        yield from _rows(
          CONTINUED, name, None, leaves, text, start, self._settings, parted
        )


def _rows(protocol, name, depth, values, text, start, settings, parted=None):
  """A row per prompt: means over its positions, and when the text parts."""
  alive_BR = np.asarray(text.alive)
  if parted is None:
    parted = values["flips"] > 0
  for b in np.flatnonzero(alive_BR.any(axis=1)):
    own_R = alive_BR[b]
    left_R = parted[b] & own_R
    row = {
      "protocol": protocol,
      "prompt": int(start + b),
      "intervention": name,
      "depth": depth,
      "count": int(own_R.sum()),
      "analysis_temperature": settings.analysis_temperature,
      "common_steps": float(np.argmax(left_R) if left_R.any() else own_R.sum()),
      "same_text": float(not left_R.any()),
    }
    for metric, leaf in values.items():
      # Truncation makes some of them infinite by definition.
      finite = np.isfinite(leaf[b, own_R]).all()
      row[metric] = float(leaf[b, own_R].mean()) if finite else None
    yield row


def _score_rows(name, depth, values, text, start):
  """A row per answer."""
  alive_BR = np.asarray(text.alive)
  for b in np.flatnonzero(alive_BR.any(axis=1)):
    own_R = alive_BR[b]
    nats = float(values["log_prob"][b, own_R].sum())
    yield {
      "protocol": ANSWERS,
      "question": int(start + b),
      "intervention": name,
      "depth": depth,
      "count": int(own_R.sum()),
      "exact": float(values["hits"][b, own_R].all()),
      "exact_sampled": float(np.exp(nats)),
      "hits": float(values["hits"][b, own_R].mean()),
      "nll": -nats if np.isfinite(nats) else None,
    }


def _batches(tokens_XT, valid_XT):
  """(rows that count, tokens, valid), all of one shape."""
  size = min(_BATCH, len(tokens_XT))
  for pick, count in batching.batches(len(tokens_XT), size):
    yield (count, jnp.asarray(tokens_XT[pick]), jnp.asarray(valid_XT[pick]))


def _only(count, text):
  """Rows that fill a batch count for nothing."""
  own_B = jnp.arange(len(text.alive)) < count
  return dataclasses.replace(text, alive=text.alive & own_B[:, None])


def _answer_texts(answers: Answers, pad: int) -> list[driver.Text]:
  """Prompts with their answers, the ends of the answers aligned."""
  widest = max(len(tail) for _, tail in answers)
  tokens_XT, valid_XT = prompts_lib.left_pad(
    tuple(head + tail for head, tail in answers), pad
  )
  lengths_X = np.array([len(tail) for _, tail in answers])
  alive_XR = np.arange(widest)[None] >= widest - lengths_X[:, None]
  texts = []
  size = min(_BATCH, len(answers))
  for pick, count in batching.batches(len(answers), size):
    tokens_BT, valid_BT = tokens_XT[pick], valid_XT[pick]
    # The last token is a prediction and is never read.
    texts.append(
      _only(
        count,
        driver.Text(
          tokens=jnp.asarray(tokens_BT[:, :-1]),
          valid=jnp.asarray(valid_BT[:, :-1]),
          target=jnp.asarray(tokens_BT[:, -widest:]),
          alive=jnp.asarray(alive_XR[pick]),
        ),
      )
    )
  return texts


def _numbered(texts):
  """Each batch with the index of its first text."""
  return [
    (index * len(texts[0].tokens), text) for index, text in enumerate(texts)
  ]
