"""The harness's own `hf` backend and ours, on the same requests."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")

PROMPTS = (
  "Once upon a time, there was a little dog. ",
  "Lily and Ben went to the",
  "<s>One day",
  "word " * 700,
)


def instances(kind, arguments):
  from lm_eval.api.instance import Instance

  return [
    Instance(request_type=kind, doc={}, arguments=argument, idx=index)
    for index, argument in enumerate(arguments)
  ]


def test_evaluation_does_not_import_the_harness():
  code = (
    "import sys, jaxprune.evaluation;"
    "assert not {'lm_eval', 'torch', 'transformers'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def folder(shared):
  return shared / "weights" / "stories260K"


@pytest.fixture(scope="module")
def ours(folder):
  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  return JaxpruneLM(folder, batch_size=8)


@pytest.fixture(scope="module")
def theirs(folder):
  pytest.importorskip("torch")
  pytest.importorskip("accelerate")
  from lm_eval.models.huggingface import HFLM

  # Its cache of logits takes "Once upon a| time" and "|Once upon a time", which
  # are the same tokens, for the same request, and scores one of them wrongly.
  return HFLM(
    pretrained=str(folder),
    dtype="float32",
    device="cpu",
    batch_size=1,
    logits_cache=False,
  )


@pytest.mark.slow
def test_loglikelihoods(shared, ours, theirs):
  path = shared / "data/tinystories_mcq/word-choice-balanced.jsonl"
  items = [json.loads(line) for line in path.read_text().splitlines()[:3]]
  pairs = [
    (item["context"], f" {option}")
    for item in items
    for option in item["options"]
  ]
  pairs += [
    ("", "Once upon a time"),
    ("A cat ", " sat"),
    ("<s>One", " day"),
    ("Once upon a", " time"),
    ("x " * 900, "and y"),
  ]
  got, expected = (
    model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    for model in (ours, theirs)
  )
  np.testing.assert_allclose(
    [nats for nats, _ in got], [nats for nats, _ in expected], atol=1e-4
  )
  greedy = [flag for _, flag in got]
  assert greedy == [flag for _, flag in expected]
  assert any(greedy) and not all(greedy)
  assert got[pairs.index(("Once upon a", " time"))][0] > -0.01
  # What a cut context of one token too many would give is far away.
  assert np.ptp([nats for nats, _ in got]) > 10


@pytest.mark.slow
def test_whole_texts(shared, ours, theirs):
  lines = (shared / "data/tinystories/valid_30KB.txt").read_text().splitlines()
  # One is longer than the context and is read in two windows.
  texts = [(line,) for line in lines[:2]] + [(lines[0] * 4,)]
  assert len(ours.tok_encode(texts[-1][0])) > ours.max_length
  got, expected = (
    model.loglikelihood_rolling(
      instances("loglikelihood_rolling", texts), disable_tqdm=True
    )
    for model in (ours, theirs)
  )
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.slow
def test_written_texts(ours, theirs):
  options = {"max_gen_toks": 24, "do_sample": False}
  requests = [(prompt, options | {"until": []}) for prompt in PROMPTS]
  got, expected = (
    model.generate_until(
      instances("generate_until", requests), disable_tqdm=True
    )
    for model in (ours, theirs)
  )
  assert got == expected
  assert len(got[0]) > 40


@pytest.mark.slow
@pytest.mark.parametrize("add_bos", [True, False])
def test_special_tokens(folder, add_bos):
  pytest.importorskip("accelerate")
  from lm_eval.models.huggingface import HFLM

  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  models = (
    JaxpruneLM(folder, add_bos_token=add_bos),
    HFLM(
      pretrained=str(folder),
      dtype="float32",
      device="cpu",
      add_bos_token=add_bos,
    ),
  )
  for text in ("Once upon", "<s>Once upon", "a"):
    for special in (None, True, False):
      got, expected = (
        model.tok_encode(text, add_special_tokens=special) for model in models
      )
      assert got == expected, (text, special)
  assert [model.prefix_token_id for model in models] == [1, 1]
  assert [model.eot_token_id for model in models] == [2, 2]


@pytest.mark.slow
def test_chat_template(folder, tmp_path):
  """The text of a conversation, and no second token in front of it."""
  pytest.importorskip("accelerate")
  from lm_eval.models.huggingface import HFLM

  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / "chat_template.jinja").write_text(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}] "
    "{{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
  )
  models = (
    JaxpruneLM(tmp_path),
    HFLM(pretrained=str(tmp_path), dtype="float32", device="cpu"),
  )
  talk = [
    {"role": "user", "content": "One day"},
    {"role": "assistant", "content": "a dog"},
  ]
  system = [{"role": "system", "content": "Be kind"}]
  for history, prompted in (
    (talk[:1], True),
    (talk, False),
    (system + talk, False),  # the template refuses it; it is left out
  ):
    got, expected = (
      model.apply_chat_template(history, add_generation_prompt=prompted)
      for model in models
    )
    assert got == expected and got.startswith("<s>[user] One day")
    ids = models[0].tok_encode(got)
    assert ids == models[1].tok_encode(got) and ids.count(1) == 1
  assert models[0].chat_template(True) == models[1].chat_template(True)


@pytest.mark.slow
def test_local_task_has_the_same_scores(shared, folder, tmp_path, monkeypatch):
  """Through the harness: task file, prompts, filters and metrics."""
  pytest.importorskip("accelerate")
  import lm_eval
  from lm_eval.tasks import TaskManager

  from experiments import harness
  from jaxprune.studies.tasks import harness as harness_lib

  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  task = "tinystories_choice"
  tasks = harness_lib.find_tasks(
    [task], harness._TEMPLATES, str(shared / "data")
  )
  settings = harness_lib.Settings(
    limit=6, model={"dtype": "float32", "batch_size": 8}
  )
  got = harness_lib.evaluate(folder, tasks, settings)
  with harness_lib.filled_in(tasks) as filled:
    expected = lm_eval.simple_evaluate(
      model="hf",
      model_args=f"pretrained={folder},dtype=float32",
      device="cpu",
      tasks=list(tasks.names),
      limit=6,
      log_samples=True,
      bootstrap_iters=0,
      task_manager=TaskManager(
        include_path=str(filled), include_defaults=False
      ),
    )
  assert (
    got["results"][task]["acc,none"] == (expected["results"][task]["acc,none"])
  )
  for mine, own in zip(got["samples"][task], expected["samples"][task]):
    assert mine["arguments"] == own["arguments"]
    np.testing.assert_allclose(
      [float(answer[0][0]) for answer in mine["resps"]],
      [float(answer[0][0]) for answer in own["resps"]],
      atol=1e-4,
    )
  rows = list(harness_lib.rows(got))
  assert len(rows) == 12 and {row["metric"] for row in rows} == {
    "acc,none",
    "acc_norm,none",
  }
  summary = harness_lib.summarise(got, rows, 0)["tasks"][task]
  assert summary["acc,none"]["low"] <= summary["acc,none"]["value"]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"device": "cuda"}, "device=cuda"),
    ({"batch_size": "auto"}, "batch_size=auto"),
    ({"max_length": 513}, "max_length=513"),
  ],
)
def test_bad_options(folder, options, message):
  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  with pytest.raises(ValueError, match=message):
    JaxpruneLM(folder, **options)


def test_bad_requests(ours):
  for options, message in (
    ({"until": [], "num_beams": 4}, "num_beams"),
    ({"until": [], "max_gen_toks": 512}, "max_gen_toks=512"),
  ):
    with pytest.raises(ValueError, match=message):
      ours.generate_until(instances("generate_until", [("a", options)]))
  with pytest.raises(ValueError, match="no chat template"):
    ours.apply_chat_template([{"role": "user", "content": "a"}])


def test_tasks_are_found_before_any_work(tmp_path):
  from jaxprune.studies.tasks import harness as harness_lib

  (tmp_path / "own.yaml").write_text("task: mine\nfile: DATA/x\n")
  find = harness_lib.find_tasks
  path = tmp_path / "own.yaml"
  for task in ("own", str(path)):
    local = find([task], tmp_path, str(tmp_path))
    assert (local.paths, local.names) == ((path,), ("mine",))
  hub = find(["gsm8k"], tmp_path, None)
  assert (hub.paths, hub.names) == ((), ("gsm8k",))
  with harness_lib.filled_in(local) as folder:
    assert f"file: {tmp_path}/x" in (folder / "own.yaml").read_text()
  with pytest.raises(ValueError, match="--data=None is no folder"):
    find(["own"], tmp_path, None)
  with pytest.raises(ValueError, match="no such file"):
    find([str(tmp_path / "other.yaml")], tmp_path, None)


def test_tasks_that_run_code_are_refused_before_the_model_is_read(tmp_path):
  from lm_eval.tasks import TaskManager

  from jaxprune.studies.tasks import harness as harness_lib

  (tmp_path / "code.yaml").write_text("task: own_code\nunsafe_code: true\n")
  tasks = harness_lib.find_tasks([f"{tmp_path}/code.yaml"], tmp_path, None)
  with pytest.raises(ValueError, match="own_code runs what .* code_tasks") as e:
    harness_lib.evaluate(tmp_path, tasks, harness_lib.Settings())
  assert "--without_isolation" in str(e.value) and "\n" not in str(e.value)
  for name, text in (
    ("safe", "task: safe\ntag: both\n"),
    ("tagged", "task: tagged\ntag: both\nunsafe_code: true\n"),
    ("group", "group: all\ntask: [safe, {group: inner, task: [tagged]}]\n"),
    ("inner", "group: inner\ntask: [tagged, all]\n"),
    ("inline", "group: inline\ntask: [{task: safe, unsafe_code: true}]\n"),
  ):
    (tmp_path / f"{name}.yaml").write_text(text)
  manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
  for name, expected in (
    ("safe", []),
    ("unknown", []),
    ("both", ["tagged"]),
    ("all", ["tagged"]),
    ("inline", ["safe"]),
  ):
    assert harness_lib.code_tasks(manager, [name]) == expected, name
