"""Methods as two switches, as in the paper: proxy yes or no, weighting none, cal or cmo. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Rule = Literal["none", "cal", "cmo"]
Form = Literal["paper", "released"]
Normalisation = Literal["sample", "rank", "global"]
Stage = Literal["proxy", "connector", "instruct"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Weighting:
    """A weighting rule with its bounds.

    `cmo` weighs by differences of probability, bounds `delta_min`, `delta_max` (paper: 0.05, 0.5); `cal` by
    differences of logit (CAL: 1, 5); `none` is the plain next-token loss and ignores the rest.

    normalise: what the weights are divided by: their sum over the `sample` (paper), over the micro-batch of a process
    (`rank`: released) or over the `global` batch, all micro-batches and processes; None: as the form does.

    Reference: the released code falls back to the bounds 0 and 1 when a script gives none; here a rule has its bounds.
    """

    rule: Rule = "none"
    low: float = 0.0
    high: float = 1.0
    form: Form = "paper"
    normalise: Normalisation | None = None

    @property
    def normalisation(self) -> Normalisation:
        """`normalise`, or what the form says."""
        return self.normalise or ("sample" if self.form == "paper" else "rank")

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"unknown weighting rule {self.rule!r}: choose one of {', '.join(get_args(Rule))}")
        if self.form not in get_args(Form):
            raise ValueError(f"unknown weighting form {self.form!r}: choose one of {', '.join(get_args(Form))}")
        if self.normalise is not None and self.normalise not in get_args(Normalisation):
            raise ValueError(
                f"unknown normalisation {self.normalise!r}: choose one of {', '.join(get_args(Normalisation))}"
            )
        if not self.low <= self.high:
            raise ValueError(f"weighting bounds must be ordered, got low {self.low} > high {self.high}")


NONE = Weighting("none")
CMO = Weighting("cmo", 0.05, 0.5)
CAL = Weighting("cal", 1.0, 5.0)

METHODS: dict[str, dict] = {
    "vanilla": {"proxy": False, "weighting": NONE},
    "cal": {"proxy": False, "weighting": CAL},
    "pmo": {"proxy": True, "weighting": NONE},
    "cmo": {"proxy": False, "weighting": CMO},
    "dpa": {"proxy": True, "weighting": CMO},
    "pmo+cal": {"proxy": True, "weighting": CAL},
}
