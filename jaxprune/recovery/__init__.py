"""Can a short training bring a pruned model back, its zeros kept?"""

from jaxprune.recovery.finetune import Recovered, Recovery, recover
from jaxprune.recovery.freedom import free_entries, masks_from_zeros
from jaxprune.recovery.losses import (
  OBJECTIVES,
  distillation,
  logit_variance,
  next_token,
)

__all__ = [
  "OBJECTIVES",
  "Recovered",
  "Recovery",
  "distillation",
  "free_entries",
  "logit_variance",
  "masks_from_zeros",
  "next_token",
  "recover",
]
