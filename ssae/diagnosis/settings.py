"""What `ssae diagnose` looks at."""

import dataclasses

from ssae.settings import check_least, check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnose:
    """The settings of `ssae diagnose`; defaults are in conf/config.yaml.

    Args:
        arms: of the study, the first is what others are compared with; null: all.
        saes: more of them: folders in any format, or ids on the hub.
        lam: price of a unit of z on the common scale of objectives; null: what the first SAE pays,
            or, if it pays none, that at which its optimal codes are as sparse as its own.
        sample_tokens: of each test split, evenly spaced, on which antipodal pairs, the cone
            condition and splits are looked at; violations and residuals take all of its tokens.
        cone_latents: of each SAE, whose cone condition is solved: from the rarest to the most
            frequent, evenly spaced.
        min_fires: tokens on which a latent must fire for its violation to count; and two documents.
        gap_tokens: on which the convex path and the own path are chosen, one direction for at least
            four of them, and as many others to hold out; 0: no scale of objectives.
    """

    arms: list[str] | None
    saes: list[str]
    lam: float | None
    sample_tokens: int
    cone_latents: int
    min_fires: int
    gap_tokens: int

    def __post_init__(self) -> None:
        check_types(self, "diagnose.")
        bounds = {
            "sample_tokens": (100, 20_000),
            "cone_latents": (0, 256),
            "min_fires": (2, 20),
            "gap_tokens": (0, 1000),
        }
        check_least(self, bounds, "diagnose.")
        for name, example in (("arms", "[generalist,specialist]"), ("saes", "[FOLDER]")):
            value = getattr(self, name)
            if not isinstance(value, list) and not (name == "arms" and value is None):
                raise ValueError(
                    f"diagnose.{name} must be a list, got {value!r}; set diagnose.{name}={example}"
                )
        if self.arms is not None and not self.arms and not self.saes:
            raise ValueError(
                "there is nothing to diagnose; set diagnose.arms=null or diagnose.saes=[FOLDER]"
            )
        if self.lam is not None and not (isinstance(self.lam, int | float) and self.lam > 0):
            raise ValueError(
                f"diagnose.lam must be null or a positive number, got {self.lam!r}; "
                "set diagnose.lam=null"
            )
