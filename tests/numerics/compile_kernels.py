"""Compile the kernels for CUDA as a Hopper card would, which takes Triton and no card: `python -m` this.

Prints a JSON object of what is `found` of each. The sizes are the wire-speed recipe's.
"""

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from livelm.kernels import many_tensors
from livelm.models.ops import look_up_cuda, softmax_walk_cuda
from livelm.models.ops.few_tokens import attention, feed_forward
from livelm.models.ops.few_tokens.functions import N_WARPS
from livelm.models.ops.few_tokens.window import _window
from livelm.optim import adamw_cuda, deferred_cuda

SIZES = {"n_channels": 256, "ROWS": 32, "CHANNELS": 256, "D_HEAD": 32, "D_KEY": 32, "CONTEXT": 512, "eps": 1e-5}
SIZES |= {"qk_eps": 1e-6, "N_INNER": 1024, "UNITS": 32, "ACTIVATION": 1, "N_PARTS": 4, "N_PIECES": 9, "PIECES": 16}
SIZES |= {"PARTS": 32}
STAGES = {
    name: kernel
    for module in (attention, feed_forward)
    for name, kernel in vars(module).items()
    if isinstance(kernel, triton.JITFunction) and kernel.__module__ == module.__name__ and name[0] != "_"
}
WINDOW = {"CONTEXT": 512, "N_PAIRS": 16, "PAIRS": 16, "ROWS": 32, "AT_ONCE": 64}
OPTIONAL = ("shift", "bias", "compress", "d_compress", "d_shift", "d_up_bias", "second", "second_sum")
"""Arguments of a block's stages that may be None."""
WALK = {"N_STEPS": 16, "BACK": True, "N_PROGRAMS": 132, "N_SUMMED": 64, "WIDTH_SUMMED": 64}
TEACH = {"n_columns": 256, "has_product": True, "has_master": True, "is_tensor": True}
TEACH |= {"n_rows": 32, "n_factors": 32, "width": 256, "height": 16}
LISTS = {"SIZES": (65536, 256, 1024) * 15, "FIRSTS": tuple(range(45)), "PIECE": 8192, "SUMS": 512}
LISTS |= {"beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1}
KINDS = dict.fromkeys(("targets", "rows", "kept", "position", "documents_after", "position_after"), "*i64")
KINDS |= {"most": "fp32", "scale": "fp32", "starts": "*i1", "frequencies": "*fp64"}
NUMBERS = ("n_rows", "n_heads", "n_hidden", "n_inner", "n_parts", "n_first", "n_second", "first_size", "second_size")
NUMBERS += ("n", "grad_step", "n_named", "n_left", "left_stride", "left_step")
NUMBERS += ("n_new", "n_factors", "n_sums", "before", "width")


def compiled(kernel: Any, constants: dict[str, Any], kinds: dict[str, Any], **options: int) -> dict[str, int]:
    """Compile one; `kinds` are types of arguments that are not pointers to float32.

    Its shared memory; how often it waits for the kernel before it; and how much it does before it waits that it must
    not, which is to write or to let the next one begin.
    """
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "*fp32") for n in names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
    tuples = [(i, j) for i, n in enumerate(names) if isinstance(signature[n], tuple) for j in range(len(signature[n]))]
    divisible |= {place: [["tt.divisibility", 16]] for place in tuples}
    known = {name: value for name, value in constants.items() if name in signature}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=divisible)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    before, *after = made.asm["ptx"].split("griddepcontrol.wait")
    early = before.count("st.global") + before.count("griddepcontrol.launch_dependents")
    return {"shared_bytes": made.metadata.shared, "waits": len(after), "too_early": early if after else 0}


def main() -> None:
    """Compile all of them."""
    found = {}
    plain = KINDS | dict.fromkeys(NUMBERS, "i32")
    for name, stage in STAGES.items():
        for ending, without in (("", {}), (" without", dict.fromkeys(OPTIONAL)))[: 1 if "attend" in name else 2]:
            warps = N_WARPS.get(name, 4)
            found[name + ending] = compiled(stage, SIZES | without, plain, num_warps=warps)
    found["window"] = compiled(_window, WINDOW, plain)
    for dtype, kind in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16")):
        options = softmax_walk_cuda.walk_options(torch.empty(1000, 256, dtype=dtype))
        flags = {name: options.pop(name) for name in ("num_warps", "num_stages")}
        kinds = plain | dict.fromkeys(("weight", "exps", "right"), kind)
        for name in ("_walk", "_add_up", "_send_back"):
            found[f"{name} {kind}"] = compiled(getattr(softmax_walk_cuda, name), options | WALK, kinds, **flags)
        kinds = plain | dict.fromkeys(("left", "right", "table"), kind) | {"eps": "fp32"}
        found[f"teach {kind}"] = compiled(deferred_cuda._teach, TEACH, kinds)
        options = TEACH | deferred_cuda.pass_options(torch.empty(1000, 256, dtype=dtype), 512)
        flags = {name: options.pop(name) for name in ("num_warps", "num_stages")}
        found[f"teach all {kind}"] = compiled(deferred_cuda._teach_all, options, kinds, **flags)
        found[f"look up {kind}"] = compiled(look_up_cuda._look_up, {"WIDTH": 256}, kinds | {"tokens": "*i64"})
    lists: dict[str, Any] = dict.fromkeys(("tensors", "weights", "gradients", "means", "squares", "steps"), "*fp32")
    lists |= dict.fromkeys(("sources", "targets"), "*i32")
    for kernel in (many_tensors._copy, many_tensors._square_sums, many_tensors._shorten, adamw_cuda._step):
        kinds = plain | {name: (kind,) * 45 for name, kind in lists.items()}
        found[kernel.__name__] = compiled(kernel, LISTS, kinds, num_warps=8)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
