"""What is removed?

Array functions, each named like its file, on one matrix `w_IO`; `vmap`, `scan`,
`jit` and `shard_map` go outside. They know no model and read no disk:

  from jaxprune.calibration.statistics import observe_gram, observe_squares
  from jaxprune.pruning.patterns import NofM, Unstructured, keep_mask
  from jaxprune.pruning.methods.wanda import wanda

  pruned_IO, mask_IO = wanda(w_IO, observe_squares(x_BTI), NofM(keep=2, of=4))

registry                    the table of methods: one row adds one
change                      what is done to a model: a method, and how much
patterns, order_statistics  which entries stay, given scores
masks, reconstruction       masks as sets; the error of a layer's outputs
controls                    as much pruning, placed at random
methods/                    magnitude, wanda, ria, sparsegpt (hessian_inverse),
                            sparse_swaps: entries of a kernel; neuron, flap:
                            hidden units of an MLP; quantize, awq: rounding
layerwise/                  what is decided over layers: drops, similarities,
                            allocation, owl
checkpoint/                 methods run on a checkpoint: weights.prune_weights
                            and sublayers.prune_drops, with layer, streaming,
                            resume (after a kill), memory (what it takes) and
                            verify behind them
"""
