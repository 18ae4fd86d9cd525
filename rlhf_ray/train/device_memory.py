"""Who holds device memory in each stage of a step, and the changes between stages: the ledger of shared GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

ENGINE_PARTS = frozenset({"weights", "kv_cache"})
LEARNER_PARTS = frozenset({"weights", "optimizer", "reference"})
NOTHING: frozenset[str] = frozenset()

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True, kw_only=True)
class Residents:
    """The parts of each role that are on the device. ``keep_weights``: an engine's weights sleep on the host.

    Without it they are forgotten, which costs no host memory, and only a sync brings them back.
    """

    engine: frozenset[str] = NOTHING
    learner: frozenset[str] = NOTHING
    reward_models: bool = False
    keep_weights: bool = True


STAGES = {
    "start": Residents(learner=LEARNER_PARTS),
    "rollout": Residents(engine=ENGINE_PARTS, reward_models=True),
    "annotate": Residents(learner=frozenset({"weights", "reference"}), keep_weights=False),
    "learn": Residents(learner=frozenset({"weights", "optimizer"}), keep_weights=False),
    "sync": Residents(engine=ENGINE_PARTS, learner=frozenset({"weights"})),
    "evaluate": Residents(engine=ENGINE_PARTS, reward_models=True),
    "annotate_heldout": Residents(learner=frozenset({"weights", "reference"})),
    "checkpoint": Residents(learner=frozenset({"weights", "optimizer"})),
    "export": Residents(learner=frozenset({"weights"})),
}
STAYING = {"none": LEARNER_PARTS, "optimizer": LEARNER_PARTS - {"optimizer"}, "all": NOTHING}


def residents(stage: str, *, time_shared: bool, offload: Offload, offload_reference: bool) -> Residents:
    """The parts on a device in a stage of :data:`STAGES`.

    ``offload`` names what of the learner sleeps where no stage needs it; it matters only where roles share GPUs in
    turns (``time_shared``). Where they do not, everything stays awake, but for a reference with ``offload_reference``.
    """
    row = STAGES[stage] if time_shared else replace(STAGES[stage], engine=ENGINE_PARTS, reward_models=True)
    staying = STAYING[offload] if time_shared else LEARNER_PARTS
    return replace(row, learner=row.learner | (staying - {"reference"} if offload_reference else staying))


@dataclass(frozen=True, kw_only=True)
class Movers:
    """What puts the parts of a role to sleep and wakes them, on all its workers."""

    engine: Callable[[frozenset[str], bool], object]
    learner: Callable[[frozenset[str]], object]
    reward_models: Callable[[bool], object]


class DeviceMemory:
    """Moves roles between host and device as a job goes from stage to stage.

    Who leaves goes before who comes, so that a device never holds more than the larger of two neighbouring stages.
    """

    def __init__(self, movers: Movers, *, time_shared: bool, offload: Offload, offload_reference: bool) -> None:
        self.movers, self.time_shared = movers, time_shared
        self.offload, self.offload_reference = offload, offload_reference
        self.now = self._residents("start")

    def before_restart(self) -> None:
        """Makes room for learner ranks that will load their models again; the old ranks will be killed next."""
        self.now = replace(self.now, learner=LEARNER_PARTS)
        self.enter("start")

    def enter(self, stage: str) -> None:
        """Makes the device hold what the stage needs; nothing if it does already, or if no role shares or offloads."""
        after = self._residents(stage)
        before, self.now = self.now, after
        if after == before:
            return
        staying = before.learner & after.learner
        if before.engine - after.engine:
            self.movers.engine(before.engine & after.engine, after.keep_weights)
        if before.reward_models and not after.reward_models:
            self.movers.reward_models(False)
        if staying != before.learner or after.engine - before.engine:
            self.movers.learner(staying)  # also gives back what its allocator keeps
        if after.learner != staying:
            self.movers.learner(after.learner)
        if after.reward_models and not before.reward_models:
            self.movers.reward_models(True)
        if after.engine - before.engine:
            self.movers.engine(after.engine, True)

    def _residents(self, stage: str) -> Residents:
        return residents(
            stage, time_shared=self.time_shared, offload=self.offload, offload_reference=self.offload_reference
        )
