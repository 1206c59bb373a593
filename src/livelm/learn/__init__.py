"""Grade, then learn; guard the weights; save and restore everything exactly."""

from livelm.learn.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, sync_path
from livelm.learn.growth import Growth
from livelm.learn.guard import Guard
from livelm.learn.learner import Learner, Optimizer
from livelm.learn.policy import apply_policy, inherit, learning_kinds, settings_for

__all__ = [
    "Growth",
    "Guard",
    "Learner",
    "Optimizer",
    "apply_policy",
    "inherit",
    "learning_kinds",
    "list_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
    "settings_for",
    "sync_path",
]
