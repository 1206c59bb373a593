"""Make a bit model twice as deep, wide or far-sighted without changing what it predicts.

- Deeper: new blocks begin silent, so they add nothing (their output maps are zero).
- Wider: every channel of the streams is there twice (Net2Net, Chen et al. 2016). Who reads a stream weighs each copy
  with half of the old weight, give or take noise that cancels: the sum is the same, the gradients are not, so copies
  part. New heads and hidden units read at random and write nothing yet; head widths stay, so positions turn as before.
- Longer window: a cache with room for more, empty at first. Whatever was read before stays as far away as it was; from
  the second patch on, the window reaches one patch further than the old one would have.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from livelm.types import State

Step = Literal["depth", "width", "context"]
NOISE = 0.25
"""Of the copies' weights, relative to their root mean square."""
READS = ("nodes", "project.weight", "up.weight")
"""Parameters whose last axis reads a stream; the others' first or only axis writes to one or stretches it."""


class Enlarged:
    """A larger model with the same predictions, and how to carry over what belongs to the smaller one."""

    def __init__(self, model: Any, what: Step) -> None:
        """`model` is a `Bit`; it is left as it is. Random numbers come from torch's own generator."""
        self._old, self._what = model, what
        c = model.config
        larger = {
            "depth": {"n_layers": 2 * c.n_layers},
            "width": {"d_model": 2 * c.d_model, "n_heads": 2 * c.n_heads, "d_ff": c.d_ff and 2 * c.d_ff},
            "context": {"context": 2 * c.context},
        }[what]
        self.model: Any = type(model)(c.model_copy(update=larger), model.n_vocabulary)
        self.model.to(model.nodes)
        old = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in old:
                    parameter.copy_(self._weight(name, old[name], parameter))
                    parameter.requires_grad_(old[name].requires_grad)

    def carry(self, name: str, tensor: Tensor, power: int) -> Tensor:
        """What an optimizer remembers of a parameter, such as a mean of gradients (power 1) or squares of them (2).

        Copies that are written to each get half of the old gradient, copies that are read from all of it.
        """
        if self._what != "width":
            return tensor.clone()
        if name.endswith(READS):
            return self._with_units(name, tensor.repeat(*[1] * (tensor.dim() - 1), 2), fill=None)
        copied = self._written(name, tensor) / 2**power
        return self._with_units(name, copied, fill=None)

    def carry_state(self, state: State) -> State:
        """The state of each lane. New heads and layers have empty keys of the past; the old ones see what they saw."""
        grown, fresh = dict(state), self.model.init_state(len(state["age"]))
        if self._what == "width":
            grown["heard"] = state["heard"].repeat(1, 2)
        for name, empty in fresh.items():
            if name.startswith(("keys.", "values.")) or name == "documents":
                held = state.get(name)
                if held is not None:
                    newest = empty[:, empty.shape[1] - held.shape[1] :]
                    (newest if name == "documents" else newest[:, :, : held.shape[2]]).copy_(held)
                grown[name] = empty
        return grown

    def _weight(self, name: str, old: Tensor, fresh: Tensor) -> Tensor:
        """The new parameter; `fresh` is what a new model would have there."""
        if self._what != "width":
            return old
        if not name.endswith(READS):
            return self._with_units(name, self._written(name, old), fill=torch.zeros_like(fresh))
        random = torch.randn(old.shape, dtype=old.dtype).to(old.device)  # the same numbers on every device
        noise = random * old.square().mean().sqrt() * NOISE / 2
        return self._with_units(name, torch.cat([old / 2 + noise, old / 2 - noise], dim=-1), fill=fresh)

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        """Both copies of the channels that a parameter writes to: the last axis of the table, else the first."""
        axis = -1 if name == "embed.weight" else 0
        return torch.cat([tensor, tensor], dim=axis)

    def _with_units(self, name: str, tensor: Tensor, fill: Tensor | None) -> Tensor:
        """With heads and hidden units that the old model did not have: values of `fill`, zero without."""
        if name.endswith(("out.weight", "down.weight")):  # a column each
            new = torch.zeros_like(tensor) if fill is None else fill[:, tensor.shape[1] :]
            return torch.cat([tensor, new], dim=1)
        if name.endswith("up.weight"):  # a row each
            new = torch.zeros_like(tensor) if fill is None else fill[len(tensor) :]
            return torch.cat([tensor, new], dim=0)
        if name.endswith("project.weight"):  # rows of queries, keys and values
            parts = []
            wholes = [None] * 3 if fill is None else fill.chunk(3)
            for part, whole in zip(tensor.chunk(3), wholes, strict=True):
                parts += [part, torch.zeros_like(part) if whole is None else whole[len(part) :]]
            return torch.cat(parts, dim=0)
        return tensor
