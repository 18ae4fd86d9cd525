"""Options of the losses of preference optimisation (job: dpo)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section

Beta = Annotated[float, Field(gt=0)]


class DPO(Section):
    """Direct preference optimisation (Rafailov et al., 2023)."""

    type: Literal["dpo"] = "dpo"
    beta: Beta = Field(0.1, description="Strength of the pull towards the reference; lower values allow more change.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs that are assumed to be labelled the wrong way round."
    )


class IPO(Section):
    """Identity preference optimisation (Azar et al., 2023)."""

    type: Literal["ipo"] = "ipo"
    beta: Beta = Field(0.1, description="The loss moves the difference of the log-ratios per token to 1 / (2 beta).")


class KTO(Section):
    """Kahneman-Tversky optimisation (Ethayarajh et al., 2024): single answers, desirable or not."""

    type: Literal["kto"] = "kto"
    beta: Beta = Field(0.1, description="Strength of the pull towards the reference; lower values allow more change.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of desirable answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of undesirable answers.")


class ORPO(Section):
    """Odds-ratio preference optimisation (Hong et al., 2024): no reference."""

    type: Literal["orpo"] = "orpo"
    beta: Beta = Field(0.1, description="Weight of the odds ratio, added to the cross-entropy of the chosen answer.")


class SimPO(Section):
    """Simple preference optimisation (Meng et al., 2024): no reference."""

    type: Literal["simpo"] = "simpo"
    beta: Beta = Field(2.0, description="Scale of the log-probs per token.")
    margin: float = Field(1.0, ge=0, description="Target margin between chosen and rejected answer, after scaling.")


PreferenceConfig = Annotated[DPO | IPO | KTO | ORPO | SimPO, Field(discriminator="type")]
