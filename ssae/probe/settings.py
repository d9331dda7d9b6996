"""What `ssae shift` does: every constant of the protocol."""

import dataclasses
from typing import Any

from ssae.probe.linear import Probe
from ssae.settings import check_least, check_types

LISTS = {
    "hookpoints": "[gpt_neox.layers.0,gpt_neox.layers.1]", "widths": "[1,0.125]",
    "seeds": "[0,1,2,3,4]", "word_pairs": "[[he,she],[his,her]]", "concepts": "[nurse,surgeon]",
}  # fmt: skip
ATTRIBUTIONS = ("integrated_gradients", "attribution_patching", "exact")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """The settings of `ssae shift`; defaults are in conf/config.yaml.

    Args:
        label: field with what the probe learns.
        spurious: field with the attribute that is to be removed from it.
        classes: two values of the label; null: those of the data.
        values: two values of the attribute; null: those of the data.
        generalist: the arm that the specialist is compared with.
        specialist: the other arm.
        control: an arm that is shown beside them, such as one trained as long on other text; null.
        hookpoints: of the SAEs, each trained for both arms; null: the probe's own, `hookpoint`.
        widths: shares of sae.d_sae at which both arms are trained, the first is the table's.
        seeds: of SAEs, splits and probes; one result each.
        num_folds: into how many parts the documents are divided, each group alike: each is tested
            once, by a probe trained on the others; null: the split "train" of the data against
            all others.
        min_documents: of each group in each test set; fewer are refused.
        probe: how it is trained.
        attribution: integrated_gradients, attribution_patching (one step) or exact (every latent
            is ablated by itself).
        attribution_steps: of integrated gradients.
        num_examples: training documents that effects are the mean over; null: all where the SAE
            reads where the probe does, else 100.
        num_candidates: latents of largest effect that are judged.
        min_effect: of a candidate, in units of the probe's margin.
        min_selectivity: from which on a candidate is judged to carry the attribute (judge.py);
            0.75 is three times as active in one reading as in the other.
        word_pairs: words of the attribute's two values, each with its counterpart. Documents with
            their words exchanged tell what a latent reads.
        examples: a .jsonl file of documents with the attribute, {text, <spurious>}, instead of
            exchanged words; null: word_pairs.
        candidates: candidates.yaml of an earlier run, after a person has judged; null: by
            selectivity.
        concepts: words of the label, for the concept bottleneck probe; [] leaves it out.
        num_contexts: texts shown for each candidate.
    """

    label: str
    spurious: str
    classes: list[str] | None
    values: list[str] | None
    generalist: str
    specialist: str
    control: str | None
    hookpoints: list[str] | None
    widths: list[float]
    seeds: list[int]
    num_folds: int | None
    min_documents: int
    probe: Probe
    attribution: str
    attribution_steps: int
    num_examples: int | None
    num_candidates: int
    min_effect: float
    min_selectivity: float
    word_pairs: list[list[str]]
    examples: str | None
    candidates: str | None = dataclasses.field(metadata={"content": False})  # its bytes count
    concepts: list[str]
    num_contexts: int

    def __post_init__(self) -> None:
        check_types(self, "shift.")
        bounds = {
            "min_documents": (1, 10),
            "attribution_steps": (1, 10),
            "num_candidates": (1, 64),
            "num_contexts": (1, 5),
        }
        check_least(self, bounds, "shift.")
        for name, least, example in (("num_folds", 2, 5), ("num_examples", 1, 100)):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < least):
                raise ValueError(
                    f"shift.{name} must be null or a whole number of at least {least}, got "
                    f"{value!r}; set shift.{name}={example}"
                )
        if self.attribution not in ATTRIBUTIONS:
            raise ValueError(
                f"shift.attribution must be one of {', '.join(ATTRIBUTIONS)}, got "
                f"{self.attribution!r}; set shift.attribution=integrated_gradients"
            )
        if not 0.5 < self.min_selectivity <= 1:
            raise ValueError(
                f"shift.min_selectivity must lie in (0.5, 1], got {self.min_selectivity}; "
                "set shift.min_selectivity=0.75"
            )
        for name, example in LISTS.items():
            value = getattr(self, name)
            if not isinstance(value, list) and not (name == "hookpoints" and value is None):
                raise ValueError(
                    f"shift.{name} must be a list, got {value!r}; set shift.{name}={example}"
                )
        wide = [w for w in self.widths if isinstance(w, int | float) and 0 < w <= 1]
        if not self.widths or len(wide) < len(self.widths) or self.widths[0] != 1:
            raise ValueError(
                "shift.widths must be shares of sae.d_sae in (0, 1], the first of them 1, got "
                f"{self.widths}; set shift.widths=[1,0.125]"
            )
        if not self.seeds or not all(_is_whole(s) and s >= 0 for s in self.seeds):
            raise ValueError(
                f"shift.seeds must be whole numbers, got {self.seeds}; set shift.seeds=[0,1,2,3,4]"
            )
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.widths)) < len(self.widths):
            raise ValueError(
                f"shift.seeds={self.seeds} and shift.widths={self.widths} must not repeat; set "
                "shift.seeds=[0,1,2,3,4] shift.widths=[1,0.125]"
            )
        if not all(_is_pair(pair) for pair in self.word_pairs):
            raise ValueError(
                f"shift.word_pairs must be pairs of words, got {self.word_pairs}; set "
                "shift.word_pairs=[[he,she],[his,her]]"
            )
        if not self.word_pairs and self.examples is None and self.candidates is None:
            raise ValueError(
                "nothing says which latents carry the attribute; set shift.word_pairs=[[he,she]], "
                "shift.examples=FILE.jsonl or shift.candidates=candidates.yaml"
            )
        for name, default, words in (
            ("spurious", "gender", self.word_pairs),
            ("label", "profession", [self.concepts]),
        ):
            known = {"he", "nurse"} & {word for some in words for word in some}
            if getattr(self, name) != default and known and self.examples is None:
                option = "word_pairs" if name == "spurious" else "concepts"
                raise ValueError(
                    f"shift.{option} are words of {default} ({known.pop()}, ...), and "
                    f"shift.{name}={getattr(self, name)}; set shift.{option} to words of that, or "
                    "to []"
                )
        if not isinstance(self.probe, Probe):
            raise ValueError(
                f"shift.probe must be one, got {self.probe!r}; set shift/probe=logistic"
            )

    @property
    def arms(self) -> list[str]:
        """Those that are compared."""
        named = (self.generalist, self.specialist, self.control)
        return [arm for arm in named if arm is not None]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(word) for word in value] == [str, str]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
