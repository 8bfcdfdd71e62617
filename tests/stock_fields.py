"""What do the configuration classes of the installed transformers declare?

Makes the table that `jaxprune/models/config_fields.py` reads:

  python tests/stock_fields.py > jaxprune/models/stock_fields.json

tests/test_stock_fields.py compares the two, so a new release of transformers
that declares or reads a field more is seen there.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys

import transformers

FAMILIES = (
  "llama",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma2",
  "gemma3_text",
  "olmo2",
  "phi3",
  "gpt2",
  "gpt_neox",
  "opt",
  "qwen3_moe",
  "bert",
)
# The code besides that of the family through which the logits go.
SHARED = (
  "cache_utils",
  "integrations.eager_paged",
  "integrations.sdpa_attention",
  "masking_utils",
  "modeling_rope_utils",
)


def make():
  """Return the table: JSON values.

  Returns:
    {'transformers': version, 'generation': names that stock drops from
    config.json because they are settings of generation, 'attributes': names of
    methods and class attributes that a key of config.json would overwrite,
    'families': {family: {'theta': the default RoPE base, 'fields': {name:
    [type, default]}, 'reads': names that are not declared but that stock code
    reads off a configuration, 'synonyms': {undeclared name: the field it
    sets}}}}. The type is '' for the fields of the base
    class, which are not checked when a configuration is made.
  """
  base = transformers.PretrainedConfig
  common = {field.name for field in dataclasses.fields(base)}
  attributes = {name for name in dir(base) if not name.startswith("__")}
  writable = {
    name
    for name, value in inspect.getmembers(base)
    if isinstance(value, property) and value.fset
  }
  families = {}
  for family in FAMILIES:
    cls = type(transformers.AutoConfig.for_model(family))
    fields = {
      field.name: [
        "" if field.name in common else type_name(field.type),
        field.default,
      ]
      for field in dataclasses.fields(cls)
    }
    # Where the stored name is the undeclared one, it is the synonym.
    synonyms = dict(
      sorted(
        (pair if pair[1] in fields else pair[::-1])
        for pair in cls.attribute_map.items()
      )
    )
    reads = set()
    # gemma3_text is a class in the files of gemma3.
    modelling = cls.__module__.replace("configuration", "modeling")
    for module in (*(f"transformers.{name}" for name in SHARED), modelling):
      reads |= names_read(importlib.import_module(module))
    families[family] = {
      "theta": cls.default_theta,
      "fields": fields,
      "reads": sorted(reads - set(fields) - attributes - set(synonyms)),
      "synonyms": synonyms,
    }
  generation = transformers.GenerationConfig._get_default_generation_params()
  return {
    "transformers": transformers.__version__,
    "generation": sorted(generation),
    "attributes": sorted(attributes - common - writable - {"model_type"}),
    "families": families,
  }


def type_name(annotation):
  """`int | None`, as it is written in the class."""
  if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
    return annotation.__name__
  return re.sub(r"\b[a-z_]+\.", "", str(annotation))


def names_read(module):
  """Names of the attributes that a module reads off something `config`."""
  found = set()
  for node in ast.walk(ast.parse(inspect.getsource(module))):
    if isinstance(node, ast.Attribute):
      owner, name = node.value, node.attr
    elif (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Name)
      and node.func.id in ("getattr", "hasattr")
      and isinstance(node.args[1], ast.Constant)
    ):
      owner, name = node.args[0], node.args[1].value
    else:
      continue
    text = ast.unparse(owner).removesuffix("()").rpartition(".")[2]
    if re.sub(r"\(.*", "", text).endswith("config"):
      found.add(name)
  return {name for name in found if not name.startswith("__")}


def as_text(table):
  """The table as JSON with one line per field."""
  text = json.dumps(table, indent=1)
  return (
    re.sub(
      r"\[\n([^{}]*?)\n *\]",
      lambda match: "[" + " ".join(match.group(1).split()) + "]",
      text,
    )
    + "\n"
  )


if __name__ == "__main__":
  sys.stdout.write(as_text(make()))
