"""What does each name in a record mean, and in which unit is it?

The one table that `records.jsonl` is written, checked, explained and labelled
from. p is the dense distribution, q the pruned one; changes are pruned -
dense; dz is the change of the logits; T is the analysis temperature.

Reference: He et al., arXiv:2603.24652, for the spaces and the estimates.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Field:
  """One column.

  Attributes:
    kind: 'text', 'int', 'float' or 'bool'.
    unit: '' for a pure number.
    meaning: one line.
  """

  kind: str
  unit: str
  meaning: str


def _table(kind: str, lines: str) -> dict[str, Field]:
  """Fields of one kind from lines `name | unit | meaning`."""
  fields = {}
  for line in lines.strip().splitlines():
    name, unit, meaning = (part.strip() for part in line.split("|", 2))
    fields[name] = Field(kind, unit, meaning)
  return fields


FIELDS: Mapping[str, Field] = {
  **_table(
    "text",
    """
        protocol | | who reads whose tokens, teacher_forced for example
        model | | which model was measured
        method | | pruning method
        pattern | | unstructured, or n:m with n kept out of m
        group | | scope in which scores compete: output, matrix, global
        sublayer | | attention or mlp
        kernel | | matrix inside the sublayer
        space | | h, z or p
        lens | | final_norm or raw: how an inner layer is read out
        intervention | | what was replaced or frozen
        task | | task or data set
        metric | | name of the number in `value`
        token_set | | vocabulary, options, option_tokens, random or top
        """,
  ),
  **_table(
    "int",
    """
        layer_error_sequences | | sequences behind layer_error, the first
        layer_error_tokens | | tokens behind layer_error
        prompt | | index of the prompt, from 0
        step | | predictions after the last prompt token; 0 is the first
        layer | | index of the layer, from 0
        seed | | random seed of this row
        question | | index of the question, from 0
        document | | index of the document, from 0
        drop_count | sublayers | how many were dropped
        count | | how many measurements the row summarises
        tokens | tokens | how many tokens the row summarises
        token_dense | | most likely next token under p
        token_pruned | | most likely next token under q
        token | | id of the token that the row is about
        position | tokens | index in the text of the token read last
        option | | index of the option, from 0
        draw | | index of the random token set, from 0
        choice | | index of the likeliest option under p
        choice_pruned | | index of the likeliest option under q
        rank | | place under p, 0 is the likeliest
        rank_pruned | | place under q
        discordant | pairs | pairs whose order is another under q
        """,
  ),
  **_table(
    "bool",
    """
        flip | | the most likely next token changed
        aligned | | both models have read the same tokens so far
        alive | | neither model has ended its text
        correct | | the answer was right
        correct_pruned | | the pruned model's answer was right
        theorem_1_valid | | the next order is at most a tenth of rho_h^2 / 2
        theorem_1_valid_z | | the next order is at most a tenth of rho_z^2 / 2
        theorem_2_valid | | the next order is at most a tenth of the estimate
        theorem_3_valid | | the next order is at most a tenth of the estimate
        top_singular_converged | | the power iteration reached its tolerance
        certified | | score_margin exceeds score_change: no flip is possible
        """,
  ),
  **_table(
    "float",
    """
        sparsity | | fraction of weights removed
        temperature | | of sampling; 0 is greedy
        analysis_temperature | | T of the softmax that is analysed
        cos_h | | cosine of the hidden states
        cos_z | | cosine of the logits
        cos_z_centred | | cosine of the logits less their means
        cos_p | | cosine of the probabilities
        alpha_h | | change along h over the norm of h
        rho_h | | change across h over the norm of h
        alpha_z | | change along z over the norm of z
        rho_z | | change across z over the norm of z
        kl | nats | KL(p||q)
        kl_reverse | nats | KL(q||p)
        js | nats | Jensen-Shannon divergence
        tv | | total variation distance
        kl_estimate | nats | Var_p(dz) / (2 T^2)
        one_minus_cos_p_estimate | | Var_r(dz) / (2 T^2)
        one_minus_cos_h_estimate | | rho_h^2 / 2
        one_minus_cos_z_estimate | | rho_z^2 / 2
        var_p | logits^2 | variance of dz under p
        var_r | logits^2 | variance of dz under r = p^2 / sum p^2
        var_uniform | logits^2 | variance of dz over the vocabulary
        entropy | nats | of p
        entropy_pruned | nats | of q
        margin | logits | dense top logit less the second
        max_abs_dz | logits | largest |dz|
        rms_dz | logits | root mean square of dz
        one_minus_cos_h | | 1 - cos_h without cancellation
        one_minus_cos_z | | 1 - cos_z without cancellation
        one_minus_cos_z_centred | | 1 - cos_z_centred without cancellation
        one_minus_cos_p | | 1 - cos_p without cancellation
        one_minus_cos_h_next_order | | what the next order adds to the estimate
        one_minus_cos_z_next_order | | what the next order adds to the estimate
        one_minus_cos_p_next_order | | third cumulant of dz / T under r, over 2
        kl_next_order | nats | third cumulant of dz / T under p, over 6
        kl_bound | nats | (max dz - min dz)^2 / (8 T^2), which kl never exceeds
        max_abs_x | | largest |dz - E_p dz| / T
        relative_p | | |q - p| / |p|
        amplification | | relative_p over |dz| / |z|; below 1 softmax damps
        amplification_centred | | the same for logits less their means
        random_amplification | | of a small change of z in a random direction
        worst_amplification | | the largest of a small change of z
        worst_share | | how far dz lies along the worst direction, 0 to 1
        linear_ratio | | length of the linear change of p over the true one
        participation | tokens | 1 / sum p^2
        top_singular | | largest singular value of the Jacobian of softmax
        var_top5 | logits^2 | variance of dz under p of its 5 top tokens
        var_top10 | logits^2 | variance of dz under p of its 10 top tokens
        mean_abs_dz | logits | mean |dz|
        l1_top5 | logits | sum of |dz| over the 5 top tokens of p
        l1_top10 | logits | sum of |dz| over the 10 top tokens of p
        l2_top5 | logits | Euclidean norm of dz over the 5 top tokens of p
        l2_top10 | logits | Euclidean norm of dz over the 10 top tokens of p
        top_p | | p of the most likely token under p
        top_q | | q of the most likely token under q
        p_of_pruned | | p of the most likely token under q
        q_of_dense | | q of the most likely token under p
        mass | | probability of the token set under p
        mass_pruned | | probability of the token set under q
        kl_mass | nats | KL of the variable "in the token set or not"
        kl_outside | nats | KL(p||q) renormalised outside of the token set
        kl_share | nats | what the token set adds to KL(p||q), never negative
        score | nats | log-probability of the option or token under p
        score_pruned | nats | log-probability of the option or token under q
        score_margin | nats | best score under p less the second
        score_change | nats | largest change of a difference of two scores
        nll | nats | negative log-likelihood summed over `tokens`
        nll_pruned | nats | nll of the pruned model
        perplexity | | exp of the mean nll per token
        value | | the number that `metric` names
        low | | lower end of the interval of `value`
        high | | upper end of the interval of `value`
        reference | | what `value` is compared with
        layer_error | | relative squared error of the layer's kernel outputs
        seconds | s | wall time
        memory | bytes | peak memory
        """,
  ),
}


def axis_label(name: str) -> str:
  """A field as an axis label: its meaning, and its unit where it has one."""
  if name not in FIELDS:
    return name
  label = _LABELS.get(name, name.replace("_", " "))
  unit = FIELDS[name].unit
  return f"{label} ({unit})" if unit else label


_LABELS = {
  "step": "decoding step",
  "layer": "layer",
  "cos_h": "cosine of hidden states h",
  "cos_z": "cosine of logits z",
  "cos_z_centred": "cosine of centred logits z",
  "cos_p": "cosine of probabilities p",
  "one_minus_cos_h": "1 − cosine of hidden states h",
  "one_minus_cos_z": "1 − cosine of logits z",
  "one_minus_cos_z_centred": "1 − cosine of centred logits z",
  "one_minus_cos_p": "1 − cosine of probabilities p",
  "kl": "KL(p‖q)",
  "kl_reverse": "KL(q‖p)",
  "js": "Jensen–Shannon divergence",
  "tv": "total variation distance",
  "kl_estimate": "estimate Varₚ(Δz) / 2T²",
  "one_minus_cos_p_estimate": "estimate Varᵣ(Δz) / 2T²",
  "one_minus_cos_h_estimate": "estimate ρ(h)² / 2",
  "one_minus_cos_z_estimate": "estimate ρ(z)² / 2",
  "var_p": "Varₚ(Δz)",
  "var_r": "Varᵣ(Δz)",
  "var_uniform": "uniform variance of Δz",
  "rms_dz": "root mean square of Δz",
  "max_abs_dz": "largest |Δz|",
  "rho_h": "change across h, relative",
  "rho_z": "change across z, relative",
  "alpha_h": "change along h, relative",
  "alpha_z": "change along z, relative",
}
