"""Files that are no configuration, or an odd one: one line names them."""

import json
import time

import pytest

from jaxprune.models import ModelConfig
from tests.test_config import TINY


def test_generation_config_names_the_ends(tmp_path):
  (tmp_path / "config.json").write_text(
    json.dumps({"model_type": "llama", **TINY, "eos_token_id": 2})
  )
  assert ModelConfig.from_hf(tmp_path).eos_ids == (2,)
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [4, 2], "pad_token_id": 9})
  )
  config = ModelConfig.from_hf(tmp_path)
  assert config.eos_ids == (4, 2) and config.pad_id == 9
  # Stock generation does not look into config.json where there is that file.
  (tmp_path / "generation_config.json").write_text("{}")
  assert ModelConfig.from_hf(tmp_path).eos_ids == ()


def test_refusals_name_the_file(tmp_path):
  with pytest.raises(ValueError, match="no config.json"):
    ModelConfig.from_hf(tmp_path)
  file = tmp_path / "config.json"
  file.write_text("{")
  with pytest.raises(ValueError, match="config.json: not JSON"):
    ModelConfig.from_hf(tmp_path)
  file.write_text("[]")
  with pytest.raises(ValueError, match="not an object"):
    ModelConfig.from_hf(tmp_path)
  file.write_text(json.dumps({"model_type": "llama", "is_causal": False}))
  with pytest.raises(ValueError, match="config.json: is_causal=False"):
    ModelConfig.from_hf(tmp_path)


@pytest.mark.parametrize(
  "text, words",
  [
    ('{"model_type": "llama", "x": ' + "[" * 1000 + "]" * 1000 + "}", "nested"),
    ('{"model_type": "llama", "x": ' + "[" * 10**6 + "}", "nested"),
    ('{"model_type": "llama", "hidden_size": 4, "hidden_size": 4}', "twice"),
    ('{"model_type": "llama", "rms_norm_eps": NaN}', "NaN is not JSON"),
    ('{"model_type": "llama", "x": -Infinity}', "not JSON"),
    (
      '{"model_type": "llama", "num_hidden_layers": 1000000000}',
      "at most 10000",
    ),
    ('{"model_type": "llama", "vocab_size": ' + "9" * 400 + "}", "at most"),
    ('{"model_type": "llama", "rms_norm_eps": ' + "9" * 400 + "}", "positive"),
    ('{"model_type": "llama", "rope_theta": ' + "9" * 5000 + "}", "not JSON"),
    ('{"model_type": ["llama"]}', "model_type=['llama']"),
    ('{"model_type": {}}', "model_type={}"),
    ('{"model_type": "llama", "hidden_act": ["silu"]}', "hidden_act=['silu']"),
    ('{"model_type": "llama", "rope_scaling": "x"}', "rope_scaling='x'"),
    ('{"model_type": "llama", "rope_scaling": {"type": []}}', "rope_type=[]"),
    ('{"model_type": "qwen2", "layer_types": [[1]]}', "layer_types"),
    ('{"model_type": "llama", "bos_token_id": ' + "9" * 400 + "}", "token id"),
    ('{"model_type": "llama"' + " " * (1 << 24) + "}", "more than"),
    ("\ufeff{}", "not JSON"),
    ("", "not JSON"),
  ],
)
def test_odd_files_get_one_line_at_once(text, words, tmp_path):
  (tmp_path / "config.json").write_text(text)
  began = time.process_time()  # not what others let it wait
  with pytest.raises(ValueError) as caught:
    ModelConfig.from_hf(tmp_path)
  assert time.process_time() - began < 1
  message = str(caught.value)
  assert message.startswith(str(tmp_path / "config.json"))
  assert words in message and "\n" not in message and len(message) < 400


def test_odd_values_of_generation_config(tmp_path):
  (tmp_path / "config.json").write_text(
    json.dumps({"model_type": "llama", **TINY})
  )
  file = tmp_path / "generation_config.json"
  file.write_text('{"eos_token_id": ["2"], "pad_token_id": [1]}')
  with pytest.raises(ValueError) as caught:
    ModelConfig.from_hf(tmp_path)
  assert "generation_config.json: eos_token_id='2'" in str(caught.value)
  assert "generation_config.json: pad_token_id=[1]" in str(caught.value)
