"""Each folder is a study of three steps, each of which a script calls.

`measure` runs models and writes rows to the run folder, `summary` makes numbers
of the rows, and `page` shows the numbers and computes none.

comparison      a dense and a pruned model at every position, while decoding
transitions     one pruned sublayer at a time in the dense model
subspace        answer options against the whole vocabulary
propagation     which sublayer and which step the change comes from
interventions   which part of the change matters
ablation        what the output loses without each sublayer
sweep           many configurations of one model, compared
guidance        rules that say whether a pruned model may be used
monitoring      steps at which the dense model decides
recovery        short training of a pruned model
retrieval       pruned encoders
tasks           scores of one or two models
benchmark       times, beside PyTorch

`prune`, `pruned_models`, `texts` and `inputs` are what several studies need."""
