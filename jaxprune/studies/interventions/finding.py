"""What do `interventions` say in words: the headline, and what is printed."""

from typing import Any

from jaxprune.probes.interventions import PARTS
from jaxprune.statistics import Estimate
from jaxprune.studies.interventions.measure import READ
from jaxprune.studies.interventions.summary import find


def headline(summary: dict[str, Any]) -> str:
  """The result in a few lines per configuration."""
  lines = []
  for name, restored in summary["configurations"].items():
    of = lambda intervention, source="pruned": find(
      summary, READ, name, source, intervention
    )
    (plain,), (random,) = of("pruned"), of("pruned", "random")
    first = of("freeze_first")[1]
    lines += [
      f"{name}: KL {_text(plain['kl'])} nats,"
      f" {_text(plain['kl_at_flips'])} of them where the likeliest token"
      f" changed; flips {_text(plain['flips'])},"
      f" {_text(plain['common_steps'])} steps in common; at random KL"
      f" {_text(random['kl'])}",
      f"  first layer dense: KL {_text(first['kl'])},"
      f" flips {_text(first['flips'])}",
    ]
    if plain.get("kl_share") is not None:
      shares = [
        f"{part} {_text(of(part)[0].get('kl_share'))}"
        for part in (*(f"keep_{part}" for part in PARTS), "add_random_all")
      ]
      lines.append(f"  share of the KL: {', '.join(shares)}")
    if restored["best_usable"] is not None:
      (best,) = of(restored["best_usable"])
      lines.append(
        f"  best usable restoration, {restored['best_usable']}: total variation"
        f" {_text(best['tv'])}, change {_text(best['tv_change'])}"
      )
  worst = max(summary["checks"].values())
  lines.append(f"largest deviation where there must be none: {worst:.2g}")
  return "\n".join(lines)


def _text(entry) -> str:
  return "–" if entry is None else Estimate.from_json(entry).format()


def finding(summary: dict[str, Any]) -> str:
  """How much of the KL lies where the likeliest token changed."""
  said = []
  for name in summary["configurations"]:
    (plain,) = find(summary, READ, name, "pruned", "pruned")
    if plain["kl"]["value"]:
      share = plain["kl_at_flips"]["value"] / plain["kl"]["value"]
      said.append(f"{name}: {100 * share:.0f} %")
  if not said:
    return ""
  return (
    "This much of the KL lies where the likeliest token changed: "
    + ", ".join(said)
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  return "\n\n".join(
    [
      headline(summary).replace("\n", "\n\n"),
      "A share is the KL with the intervention over the KL without, so 1 undoes"
      " nothing and 0 everything; shares of the two parts of a pair need not"
      " add up. Which token is likeliest is decided by the logits alone, so a"
      " flip is there before the softmax.",
      "Oracles need the dense logits: they explain and are no remedy. A frozen"
      " layer needs nothing but a smaller sparsity.",
    ]
  )
