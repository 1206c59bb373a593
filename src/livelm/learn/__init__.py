"""Grade, then learn; guard the weights; save and restore everything exactly."""

from livelm.learn.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, sync_path
from livelm.learn.guard import Guard
from livelm.learn.learner import Learner, Optimizer
from livelm.learn.mixed import BesideLearner, MemoryLearner, MixedLearner, hear, read_only

__all__ = [
    "BesideLearner",
    "Guard",
    "Learner",
    "MemoryLearner",
    "MixedLearner",
    "Optimizer",
    "hear",
    "list_checkpoints",
    "load_checkpoint",
    "read_only",
    "save_checkpoint",
    "sync_path",
]
