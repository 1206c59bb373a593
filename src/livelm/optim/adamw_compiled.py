"""AdamW for many small tensors in one compiled pass: torch's takes twice as long, and its Python as long again."""

import math
from array import array

import numpy as np
import torch
from torch.autograd.graph import increment_version

from livelm.compiled import unchecked
from livelm.compiled.addresses import MOST, doubles_at, flat, floats_at, integers_at

STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW of torch keeps of a weight, and changes in place."""


class Places:
    """Where the weights of an optimizer lie, and what it keeps of them."""

    def __init__(self, optimizer: torch.optim.AdamW) -> None:
        self._groups = optimizer.param_groups
        both = [(weight, number) for number, group in enumerate(self._groups) for weight in group["params"]]
        known = [(weight, number) for weight, number in both if optimizer.state.get(weight)]
        self._new = [weight for weight, _ in both if not optimizer.state.get(weight)]
        """What torch makes the state of, at the first gradient."""
        self._weights = [(weight, weight.data_ptr()) for weight, _ in known]
        self.fit = sum(weight.numel() for weight, _ in both) <= MOST and all(w.numel() and flat(w) for w, _ in both)
        """Whether these are weights that `step` is for."""
        # held, so that nothing else comes to lie at their addresses
        self._state = [optimizer.state[weight][name] for name in STATE for weight, _ in known]
        self._flat = all(map(flat, self._state))
        at = [tensor.data_ptr() for tensor in (*(weight for weight, _ in known), *self._state)]
        self._lists = array("q", [*at, *(weight.numel() for weight, _ in known), *(number for _, number in known)])

    def step(self) -> bool:
        """Do what the optimizer's own step does (Loshchilov and Hutter 2019, algorithm 2), to float rounding.

        Returns false, and changes nothing, where that cannot be done here: for other AdamWs, gradients that do not
        lie flat, weights without state or that have moved.
        """
        given = array("q")
        for weight, at in self._weights:
            gradient = weight.grad
            if gradient is None:
                given.append(0)
            elif flat(gradient) and weight.data_ptr() == at:
                given.append(gradient.data_ptr())
            else:
                return False
        numbers = array("d")
        for group in self._groups:
            if group["amsgrad"] or group["maximize"]:
                return False
            numbers.extend((group["lr"], *group["betas"], group["eps"], group["weight_decay"]))
        if not (self.fit and self._flat) or any(weight.grad is not None for weight in self._new):
            return False
        _step(len(given), *(packed.buffer_info()[0] for packed in (given, self._lists, numbers)))
        # so that torch refuses to differentiate a graph from before; one is enough, as a graph needs them all
        increment_version(self._weights[0][0])
        return True


@unchecked
def _step(n: int, gradients_at: int, lists_at: int, numbers_at: int) -> None:
    """Change `n` weights.

    Lists of n: addresses of gradients (0: none); addresses of weights, means, squares, steps, then sizes and groups.
    Five numbers of each group: rate, beta1, beta2, eps, decay.
    """
    gradients, lists, numbers = integers_at(gradients_at), integers_at(lists_at), doubles_at(numbers_at)
    for k in range(n):
        if gradients[k] == 0:
            continue
        g, w, m = floats_at(gradients[k]), floats_at(lists[k]), floats_at(lists[n + k])
        v, steps, group = floats_at(lists[2 * n + k]), floats_at(lists[3 * n + k]), 5 * lists[5 * n + k]
        rate, beta1, beta2, decay = numbers[group], numbers[group + 1], numbers[group + 2], numbers[group + 4]
        steps[0] += np.float32(1.0)
        t = np.float64(steps[0])
        # in double precision, then rounded once
        share1, share2, keep2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2), np.float32(beta2)
        keep, eps = np.float32(1.0 - rate * decay), np.float32(numbers[group + 3])
        size = np.float32(rate / (1.0 - beta1**t))
        unbias = np.float32(1.0 / math.sqrt(1.0 - beta2**t))
        for i in range(lists[4 * n + k]):
            m[i] += share1 * (g[i] - m[i])
            v[i] = keep2 * v[i] + share2 * g[i] * g[i]
            w[i] = keep * w[i] - size * m[i] / (math.sqrt(v[i]) * unbias + eps)
