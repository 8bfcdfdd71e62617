"""Can a short training bring a pruned model back, its zeros kept?

finetune         the training loop
losses           what it minimises
trainable_mask   which parameters it may change"""

from jaxprune.recovery.finetune import Recovered, Recovery, recover
from jaxprune.recovery.losses import (
  OBJECTIVES,
  distillation,
  logit_variance,
  next_token,
)
from jaxprune.recovery.trainable_mask import (
  make_trainable_mask,
  masks_from_zeros,
)

__all__ = [
  "OBJECTIVES",
  "Recovered",
  "Recovery",
  "distillation",
  "logit_variance",
  "make_trainable_mask",
  "masks_from_zeros",
  "next_token",
  "recover",
]
