"""Folders whose config and tokenizer disagree, as the harness reads them."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("default")

GREEDY = {"max_gen_toks": 12, "do_sample": False}
# `.` is an ordinary token that the model writes, `</s>` one it does not.
FOLDERS = {
  "nothing in config.json": (
    {"bos_token_id": None, "eos_token_id": None},
    None,
    {},
    {},
  ),
  "another end, and a penalty": (
    {"eos_token_id": 2},
    {"eos_token_id": [426, 401], "repetition_penalty": 1.6},
    {"bos_token": "</s>", "eos_token": "<s>"},
    {"add_bos_token": True},
  ),
  "no end in generation_config.json": (
    {"eos_token_id": 426},
    {"bos_token_id": 1},
    {"bos_token": None},
    {"add_bos_token": False, "prefix_token_id": 7},
  ),
  "an end that is an ordinary token": (
    {"bos_token_id": 5, "eos_token_id": 432},
    None,
    {"eos_token": ".", "tokenizer_class": "LlamaTokenizer"},
    {},
  ),
}
PAIRS = [("", "Once upon"), ("A cat ", " sat"), ("<s>One", " day</s>")]
TEXTS = [("Once upon a time",), ("</s>The end",), ("",)]
WRITTEN = [
  ("Once upon a time", GREEDY | {"until": []}),
  ("<s>One day", GREEDY | {"until": ["</s>"]}),
  ("</s>One day", GREEDY | {"until": ["named", "."]}),
]


def instances(kind, arguments):
  from lm_eval.api.instance import Instance

  return [
    Instance(request_type=kind, doc={}, arguments=argument, idx=index)
    for index, argument in enumerate(arguments)
  ]


def copy(source, target, config, generation, tokenizer):
  """A checkpoint folder with other keys in its JSON files; None takes away.

  Of the five layers it keeps two, as decoding compiles each of them.
  """
  for path in source.iterdir():
    (target / path.name).write_bytes(path.read_bytes())
  weights = target / "model.safetensors"
  tensors = {
    name: tensor
    for name, tensor in safetensors.numpy.load_file(weights).items()
    if not re.match(r"model\.layers\.[2-9]\.", name)
  }
  safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
  config = {"num_hidden_layers": 2} | config
  for name, fields in (
    ("config.json", config),
    ("tokenizer_config.json", tokenizer),
  ):
    read = json.loads((target / name).read_text()) | fields
    kept = {key: value for key, value in read.items() if value is not None}
    (target / name).write_text(json.dumps(kept))
  path = target / "generation_config.json"
  path.unlink()
  if generation is not None:
    path.write_text(json.dumps(generation))
  return target


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_answers_are_those_of_the_hf_backend(shared, tmp_path, name):
  from lm_eval.models.huggingface import HFLM

  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  *fields, options = FOLDERS[name]
  folder = copy(shared / "weights/stories260K", tmp_path, *fields)
  theirs = HFLM(
    pretrained=str(folder),
    dtype="float32",
    device="cpu",
    logits_cache=False,
    **options,
  )
  ours = JaxpruneLM(folder, **options)
  assert ours.prefix_token_id == theirs.prefix_token_id
  assert ours.eot_token_id == theirs.eot_token_id
  for text in ("<s>Hi", "</s>Hi", " Hi", "", "<s>"):
    for special in (None, True, False):
      assert ours.tok_encode(text, special) == theirs.tok_encode(text, special)
  for context, continuation in PAIRS[1:]:
    assert ours._encode_pair(context, continuation) == theirs._encode_pair(
      context, continuation
    )

  def answers(kind, arguments):
    return (
      getattr(model, kind)(instances(kind, arguments), disable_tqdm=True)
      for model in (ours, theirs)
    )

  got, expected = answers("loglikelihood", PAIRS)
  np.testing.assert_allclose(got, expected, atol=1e-3)
  got, expected = answers("loglikelihood_rolling", TEXTS)
  np.testing.assert_allclose(got, expected, atol=2e-3)
  got, expected = answers("generate_until", WRITTEN)
  assert got == expected


def test_what_generate_would_do_besides_is_refused(tmp_path):
  from jaxprune.evaluation import stock_generation

  (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"no_repeat_ngram_size": 3, "min_new_tokens": 2, "min_p": 0.1})
  )
  defaults = stock_generation.load_defaults(tmp_path)
  with pytest.raises(ValueError) as caught:
    defaults.sampling({"do_sample": False})
  assert "min_new_tokens=2, no_repeat_ngram_size=3" in str(caught.value)
  with pytest.raises(ValueError, match="min_p=0.1"):
    defaults.sampling({"do_sample": True})


def test_the_folder_says_what_the_task_leaves_open(tmp_path):
  from jaxprune.evaluation import stock_generation

  (tmp_path / "config.json").write_text(
    json.dumps({"model_type": "llama", "eos_token_id": 5})
  )
  plain = stock_generation.load_defaults(tmp_path)
  assert plain.sampling({}).eos_ids == (5,)
  drawn = plain.sampling({"do_sample": True, "temperature": 0.5})
  assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.5, 50, 1.0)
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1})
  )
  own = stock_generation.load_defaults(tmp_path)
  drawn = own.sampling({"do_sample": True, "top_p": 0.9})
  assert (drawn.top_k, drawn.top_p) == (20, 0.9)
  greedy = own.sampling({"do_sample": False})
  assert (greedy.temperature, greedy.repetition_penalty) == (0.0, 1.1)
  assert greedy.eos_ids == ()


def test_no_prefix_token_is_said_where_one_is_needed(shared, tmp_path):
  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  tokenizer = {"bos_token": None, "eos_token": None}
  folder = copy(shared / "weights/stories260K", tmp_path, {}, None, tokenizer)
  model = JaxpruneLM(folder)
  assert model.tok_encode("<s>Hi") == model.tok_encode("<s>Hi", True)
  with pytest.raises(ValueError, match="names no beginning and no end of text"):
    model.loglikelihood(instances("loglikelihood", [("", "a")]))
