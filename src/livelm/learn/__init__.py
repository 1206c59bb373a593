"""Grade, then learn; guard the weights; save and restore everything exactly."""

from livelm.learn.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, sync_path
from livelm.learn.growth import Growth
from livelm.learn.guard import Guard
from livelm.learn.learner import Learner, Optimizer

__all__ = [
    "Growth",
    "Guard",
    "Learner",
    "Optimizer",
    "list_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
    "sync_path",
]
