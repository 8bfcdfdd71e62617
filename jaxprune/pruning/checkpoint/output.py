"""How is a pruned checkpoint written?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune import checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """How a pruned model is written.

  Attributes:
    slim: build the model without what is removed, instead of zeros in place:
      MLPs without the hidden units, for methods that remove units, and without
      the layers whose attention and MLP are both dropped, for drops.
    provenance: JSON values that identify the run. A resumed run must have the
      same.
    overwrite: replace an older model folder.
    shard_size: bytes of tensors in a file.
  """

  slim: bool = False
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  overwrite: bool = False
  shard_size: int = checkpoints.SHARD_SIZE
