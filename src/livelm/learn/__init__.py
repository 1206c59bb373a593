"""Grade, then learn; guard the weights; save and restore everything exactly."""

from livelm.learn.captured import CapturedLearner
from livelm.learn.captured_mixed import CAPTURED
from livelm.learn.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, sync_path
from livelm.learn.growth import Growth
from livelm.learn.guard import Guard
from livelm.learn.holdout import Holdout
from livelm.learn.learner import Learner, Optimizer
from livelm.learn.listen import Listener, listen
from livelm.learn.mixed import BesideLearner, MemoryLearner, MixedBitLearner, MixedLearner
from livelm.learn.policy import apply_policy, inherit, learning_kinds, settings_for
from livelm.learn.rehearsal import Rehearsal

__all__ = [
    "CAPTURED",
    "BesideLearner",
    "CapturedLearner",
    "Growth",
    "Guard",
    "Holdout",
    "Learner",
    "Listener",
    "MemoryLearner",
    "MixedBitLearner",
    "MixedLearner",
    "Optimizer",
    "Rehearsal",
    "apply_policy",
    "inherit",
    "learning_kinds",
    "list_checkpoints",
    "listen",
    "load_checkpoint",
    "save_checkpoint",
    "settings_for",
    "sync_path",
]
