"""The flags that several scripts have, defined once and named alike.

A script calls a group where other flags are defined, at its top level:

  PROMPTS = flag_groups.prompts(limit=32, max_new_tokens=64)

The flags become the script's own: its `--help` shows them and run.json holds
them. A group of several flags returns a frozen holder that reads what the flags
name, `PROMPTS.read(source)`; a group of one flag returns absl's holder,
`SEED.value`. Defaults are arguments, and REQUIRED is the default of a flag that
must be given.
"""

from .calibration_flags import (
  TEXT_OR_SELF,
  Calibration,
  calibration,
  calibration_text,
  samples,
  sequence_length,
)
from .define import MAX_SEED, REQUIRED, numbers, several
from .measurement_flags import (
  analysis_temperature,
  batch,
  layer_rows,
  lens,
  limit,
  micro_batch,
  seed,
  survival,
  temperature,
)
from .model_flags import Model, Models, dense_model, model, models
from .output_flags import mesh, out, shard_size
from .pruning_flags import (
  PrunedModels,
  Seeds,
  configurations,
  pruned_models,
  seeds,
)
from .task_flags import (
  NamedTasks,
  Tasks,
  allow_code_execution,
  named_tasks,
  tasks,
  without_isolation,
)
from .text_flags import (
  Comparison,
  Prompts,
  chat,
  comparison,
  new_tokens,
  prompt_file,
  prompts,
)

__all__ = [
  "Calibration",
  "Comparison",
  "MAX_SEED",
  "Model",
  "Models",
  "NamedTasks",
  "Prompts",
  "PrunedModels",
  "REQUIRED",
  "Seeds",
  "TEXT_OR_SELF",
  "Tasks",
  "allow_code_execution",
  "analysis_temperature",
  "batch",
  "calibration",
  "calibration_text",
  "chat",
  "comparison",
  "configurations",
  "dense_model",
  "layer_rows",
  "lens",
  "limit",
  "mesh",
  "micro_batch",
  "model",
  "models",
  "named_tasks",
  "new_tokens",
  "numbers",
  "out",
  "prompt_file",
  "prompts",
  "pruned_models",
  "samples",
  "seed",
  "seeds",
  "sequence_length",
  "several",
  "shard_size",
  "survival",
  "tasks",
  "temperature",
  "without_isolation",
]
