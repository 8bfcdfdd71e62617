"""What counts as rounding, and that nothing leads out of a folder or hangs."""

import dataclasses
import json
import os

import hf_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from scripts import call

from jaxprune import checkpoints
from jaxprune.checkpoints import export, folders, masks
from jaxprune.pruning.checkpoint import verify
from jaxprune.studies.benchmark import parity

TOKENS = np.random.default_rng(0).integers(3, 60, (2, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model with biases, in bfloat16, as stock writes it."""
  folder = tmp_path_factory.mktemp("parity") / "model"
  model, _, _ = hf_models.build(
    "llama", num_hidden_layers=1, attention_bias=True, tie_word_embeddings=True
  )
  model.to(torch.bfloat16).save_pretrained(folder)
  return folder


# --- by hand ----------------------------------------------------------------


@pytest.mark.parametrize(
  "factor, passed", [(0.5, True), (3.0, True), (5.0, False), (1e3, False)]
)
def test_rounding_is_judged_by_that_of_stock(factor, passed):
  """Errors of one direction, so that their sizes are known."""
  exact = np.array([[[3.0, -1.0, 0.5], [0.0, 2.0, -2.0]]])
  step = 1e-5 * np.ones_like(exact)
  found = parity.judge(exact + factor * step, exact + step, exact)
  size = np.linalg.norm(exact)
  assert found.stock_relative_error == pytest.approx(1e-5 * 6**0.5 / size)
  assert found.relative_error == pytest.approx(
    factor * found.stock_relative_error
  )
  assert found.largest_error == pytest.approx(factor * 1e-5)
  assert (found.largest_logit, found.top_1) == (3.0, 1.0)
  assert found.passed is passed
  assert found.verdict.startswith("as stock" if passed else "NOT as stock")
  # Twice the tolerance is given, so twice the error passes.
  wider = parity.judge(
    exact + factor * step, exact + step, exact, allowed=10 * parity.ALLOWED
  )
  assert wider.passed is (factor < 1e3)


def test_a_yardstick_that_is_off_itself_is_none():
  exact = np.array([[[3.0, -1.0, 0.5]]])
  found = parity.judge(exact * 1.005, exact * 1.005, exact)
  assert not found.passed and found.verdict.startswith("NOT as stock")


def test_float64_is_of_what_float32_holds(tmp_path):
  """Gemma's factor of the embedding is a buffer that bfloat16 would round."""
  model, _, _ = hf_models.build(
    "gemma3_text", num_hidden_layers=1, hidden_size=40
  )
  model.to(torch.bfloat16).save_pretrained(tmp_path / "m")
  source = checkpoints.open_checkpoint(tmp_path / "m")
  stock, exact, _ = parity._run_stock(source, TOKENS[:, :8], TOKENS[:1, :2], 1)
  found = parity.judge(stock, stock, exact)
  assert found.stock_relative_error < 3e-6


def test_without_float64_there_is_a_bound():
  stock = np.array([[[3.0, -1.0, 0.5]]], np.float32)
  found = parity.judge(stock + np.float32(1e-5), stock, None)
  assert found.passed and found.stock_relative_error is None
  assert "float64 did not fit" in found.verdict
  assert not parity.judge(stock * 1.001, stock, None).passed
  assert "not measured" in parity.table(
    {"m": dataclasses.asdict(found) | {"round_trip": None}}
  )


def test_exact_agreement_of_both_is_no_failure():
  """Rounding of 0 is no yardstick: a few ulp are allowed."""
  exact = np.array([[[3.0, -1.0, 0.5]]])
  assert parity.judge(exact * (1 + 1e-7), exact, exact).passed


def test_likeliest_tokens_divergence_and_texts():
  p = np.array([0.7, 0.2, 0.1])
  q = np.array([0.1, 0.2, 0.7])
  stock = np.log([[p, p]])
  found = parity.judge(
    np.log([[p, q]]), stock, stock, texts=([5, 6, 7, 8], [5, 6, 9, 8])
  )
  kl = (p * np.log(p / q)).sum()
  assert found.kl_max == pytest.approx(kl) and not found.passed
  assert found.kl_mean == pytest.approx(kl / 2) and found.top_1 == 0.5
  assert (found.greedy_common, found.greedy_tokens) == (2, 4)


# --- stock ------------------------------------------------------------------


def test_float64_is_float64_in_every_module(folder):
  """Norms too, which stock computes in float32 whatever its dtype."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.bfloat16, attn_implementation="eager"
  ).eval()
  before = {name: p.detach().clone() for name, p in model.named_parameters()}
  x = torch.tensor(np.random.default_rng(0).normal(size=(3, 32)))
  with parity._wide(model), torch.no_grad():
    got = model(torch.tensor(TOKENS)).logits
    normed = model.model.norm(x).numpy()
  scale = before["model.norm.weight"].double().numpy()
  mean = np.square(x.numpy()).mean(-1, keepdims=True) + 1e-6
  np.testing.assert_allclose(
    normed, x.numpy() / np.sqrt(mean) * scale, rtol=1e-14
  )
  assert got.dtype == torch.float64
  for name, parameter in model.named_parameters():
    assert parameter.dtype == torch.bfloat16
    assert torch.equal(parameter, before[name])
  with torch.no_grad():
    plain = model.float()(torch.tensor(TOKENS)).logits.double()
  error = (plain - got).norm() / got.norm()
  assert 1e-9 < error < 1e-5


@pytest.mark.parametrize("lists", [{}, {"drop_attn_list": [0]}])
def test_a_sound_folder_is_as_stock(folder, tmp_path, lists):
  """Also with dense weights of a sublayer that is left out."""
  copy = tmp_path / "copy"
  copy.mkdir()
  for path in folder.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  hf = json.loads((copy / "config.json").read_text()) | lists
  (copy / "config.json").write_text(json.dumps(hf))
  source = checkpoints.open_checkpoint(copy)
  found = parity.compare(source, TOKENS)
  assert found.passed and found.top_1 == 1 and found.kl_max < 1e-9
  assert (found.greedy_common, found.greedy_tokens) == (32, 32)
  assert parity.round_trip(source, tmp_path / "again")
  assert not (tmp_path / "again").exists()


def test_a_model_without_head_is_compared_by_its_hidden_states(tmp_path):
  """Whose names in the file lack that of the model; one sublayer is out."""
  model, _, _ = hf_models.build("mistral", num_hidden_layers=1)
  model.model.save_pretrained(tmp_path / "m")
  path = tmp_path / "m" / "config.json"
  hf = json.loads(path.read_text()) | {"drop_mlp_list": [True]}
  path.write_text(json.dumps(hf))
  source = checkpoints.open_checkpoint(tmp_path / "m")
  found = parity.compare(source, TOKENS)
  assert found.passed and found.top_1 is found.kl_max is None
  assert found.greedy_tokens == 0
  row = dataclasses.asdict(found) | {"round_trip": True}
  assert "| no head | not measured |" in parity.table({"m": row})


def test_texts_go_on_behind_their_end(folder, tmp_path):
  """The first token of the continuation ends texts, says the folder."""
  copy = tmp_path / "copy"
  copy.mkdir()
  for file in ("config.json", "model.safetensors"):
    (copy / file).write_bytes((folder / file).read_bytes())
  prompt = TOKENS[:1, :16]
  write = lambda: parity._run_stock(
    checkpoints.open_checkpoint(copy), TOKENS, prompt, 8
  )[2]
  text = write()
  (copy / "generation_config.json").write_text(
    json.dumps({"eos_token_id": int(text[0]), "repetition_penalty": 9.0})
  )
  np.testing.assert_array_equal(write(), text)
  assert len(text) == 8


def test_another_epsilon_is_not_rounding(folder):
  config, params = checkpoints.load_params(folder, jnp.float32)
  source = checkpoints.open_checkpoint(folder)
  wrong = dataclasses.replace(config, norm_eps=1e-4)
  stock, exact, _ = parity._run_stock(source, TOKENS, TOKENS[:1, :2], 1)
  z, other = (parity._logits(c, params, TOKENS) for c in (config, wrong))
  assert parity.judge(np.asarray(z), stock, exact).passed
  assert not parity.judge(np.asarray(other), stock, exact).passed


def test_the_script_prints_one_table(folder, tmp_path):
  done = call(
    "verify", f"--model={folder}", f"--also={folder}", f"--out={tmp_path}/out"
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  assert summary["checks"]["stock"] is True
  assert list(summary["stock"]) == [str(folder)]
  assert f"| {folder} |" in done.stdout and "as stock to rounding" in (
    done.stdout
  )


# --- only names inside the folder -------------------------------------------


def broken(path, kind, tmp_path):
  """Put something at `path` that must be neither followed nor waited for."""
  if kind == "fifo":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  elif kind == "nowhere":
    path.symlink_to("absent")
  else:
    (tmp_path / "outside").write_text("{}")
    path.symlink_to(tmp_path / "outside")


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "nowhere"])
@pytest.mark.parametrize(
  "name", ["generation_config.json", masks.FILE, export.PROGRESS]
)
def test_what_is_no_file_of_the_folder_is_refused(folder, tmp_path, kind, name):
  copy = tmp_path / "copy"
  copy.mkdir()
  for file in ("config.json", "model.safetensors"):
    (copy / file).write_bytes((folder / file).read_bytes())
  source = checkpoints.open_checkpoint(copy)
  verify.verify(source)
  folders.check_files(copy)
  (copy / "a_folder").mkdir()
  broken(copy / name, kind, tmp_path)
  with pytest.raises(ValueError, match=name) as caught:
    parity.compare(source, TOKENS)
  assert "\n" not in str(caught.value)
  if name != "generation_config.json":
    with pytest.raises(ValueError, match=name):
      verify.verify(source)


@pytest.mark.parametrize(
  "shards",
  [
    {"../outside": {"size": 2, "sha256": ""}},
    {"/dev/zero": {"size": 0, "sha256": ""}},
    {"absent.safetensors": {"size": 0, "sha256": ""}},
    {"model.safetensors": {}},
    {"model.safetensors": 3},
    ["model.safetensors"],
    None,
  ],
)
def test_names_in_the_record_stay_in_the_folder(folder, tmp_path, shards):
  copy = tmp_path / "copy"
  copy.mkdir()
  (tmp_path / "outside").write_text("{}")
  for file in ("config.json", "model.safetensors"):
    (copy / file).write_bytes((folder / file).read_bytes())
  (copy / export.PROGRESS).write_text(json.dumps({"shards": shards}))
  with pytest.raises(ValueError) as caught:
    verify.verify(checkpoints.open_checkpoint(copy))
  assert "\n" not in str(caught.value) and str(copy) in str(caught.value)
