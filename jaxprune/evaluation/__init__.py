"""How well does a model do its tasks?

perplexity, loglikelihoods   the probability of a given text
multiple_choice              the likeliest option of a question
generation                   texts that a model writes
code_execution               tests of code that a model wrote, by
  isolation                    a sandbox that the system has
  code_sides                   its two processes, program and tests
  supervision                  the one that watches them
embeddings, sentences        vectors of texts, of a decoder or an encoder
retrieval                    rankings of documents by those vectors

The adapters, `lm_eval_adapter` and `mteb_adapter`, are not imported here: they
need packages of their own.
"""

from jaxprune.evaluation.code_execution import (
  Limits,
  Outcome,
  Program,
  pass_at_k,
  run_program,
)
from jaxprune.evaluation.embeddings import embed_tokens
from jaxprune.evaluation.generation import (
  Continuation,
  Writing,
  continue_prompts,
  exact_match,
  final_number,
  first_divergence,
  normalised,
)
from jaxprune.evaluation.loglikelihoods import LogLikelihoods, encode_pair
from jaxprune.evaluation.multiple_choice import (
  Choices,
  Question,
  flips,
  read_questions,
  score_questions,
)
from jaxprune.evaluation.perplexity import (
  Scores,
  read_held_out_text,
  score_documents,
  score_windows,
  token_nll,
)
from jaxprune.evaluation.retrieval import evaluate_order, evaluate_ranking

__all__ = [
  "Choices",
  "Continuation",
  "Limits",
  "LogLikelihoods",
  "Outcome",
  "Program",
  "Question",
  "Scores",
  "Writing",
  "continue_prompts",
  "embed_tokens",
  "encode_pair",
  "evaluate_order",
  "evaluate_ranking",
  "exact_match",
  "final_number",
  "first_divergence",
  "flips",
  "normalised",
  "pass_at_k",
  "read_held_out_text",
  "read_questions",
  "run_program",
  "score_documents",
  "score_questions",
  "score_windows",
  "token_nll",
]
