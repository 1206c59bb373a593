"""Read published RWKV-7 weights: native names, Hugging Face names, the rwkv.cpp format; sizes follow from the shapes.

Nothing is ever unpickled but tensors: .pth files go through `torch.load(weights_only=True)`.
"""

import json
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from livelm.errors import CheckpointError
from livelm.models.rwkv7 import RWKV7, RWKV7Config

CPP_MAGIC, CPP_VERSIONS = 0x67676D66, (100, 101)
CPP_DTYPES = {0: torch.float32, 1: torch.float16}
LETTERS = "rwkvag"
"""The order of the token shifts where they are stored as one tensor."""

_HF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_HF_TOP = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_HF_PARTS = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.g_norm": "att.ln_x",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "ffn.key": "ffn.key",
    "ffn.value": "ffn.value",
}
_HF_LORA = re.compile(r"attn\.([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")
_LORA_PARTS = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}
_UNUSED = re.compile(r"blocks\.0\.att\.v[012]")
"""Layer 0 has no value residual, but some checkpoints store its parameters."""


def load_rwkv7(path: Path) -> RWKV7:
    """The model of a file, as large as its tensors say, in float32.

    Raises CheckpointError for a file that cannot be read, or whose tensors are missing, extra or misshapen.
    """
    tensors = to_native(read_tensors(path), str(path))
    config, n_vocabulary = infer_config(tensors, str(path))
    with torch.device("meta"):  # shapes only: every value is read
        model = RWKV7(config, n_vocabulary)
    return fill(model.to_empty(device="cpu"), tensors, str(path))


def fill(model: RWKV7, tensors: Mapping[str, Tensor], where: str) -> RWKV7:
    """Put native tensors into a model of any initial values. Raises CheckpointError naming those that do not fit."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    faults += [f"{name} is unknown" for name in tensors.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise CheckpointError(
            f"{where} does not fit an RWKV-7 model with {model.config}: {'; '.join(sorted(faults)[:8])}{more}."
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file (or of the index of several), of an rwkv.cpp file, or of a .pth file.

    Raises CheckpointError for what cannot be read, and for a .pth file that holds anything but tensors.
    """
    try:
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            is_cpp = file.read(4) == struct.pack("<I", CPP_MAGIC)
        if is_cpp:
            return _read_cpp(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: {reason}. It must be a .safetensors file, an rwkv.cpp file, or "
            "a .pth file that holds nothing but tensors."
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"checkpoint {str(path)!r} is not a plain dictionary of tensors by name.")
    return tensors


def to_native(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names and shapes as `RWKV7` has them, from native or Hugging Face ones; unknown names stay as they are."""
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name, tensor = _from_hugging_face(name, tensor)
        if not _UNUSED.fullmatch(name):
            native[name] = tensor
    for prefix in sorted({name[: -len("x_r")] for name in native if name.endswith("att.x_r")}):
        shifts = [native.pop(prefix + f"x_{letter}", None) for letter in LETTERS]
        present = [shift.flatten() for shift in shifts if shift is not None]
        if len(present) < len(LETTERS) or len({len(shift) for shift in present}) > 1:
            sizes = {f"x_{m}": None if s is None else s.numel() for m, s in zip(LETTERS, shifts, strict=True)}
            raise CheckpointError(f"{where}: the token shifts {prefix}x_* are missing or of different sizes: {sizes}.")
        native[prefix + "x_rwkvag"] = torch.stack(present)
    return {name: _plain_shape(name, tensor) for name, tensor in native.items()}


def infer_config(tensors: Mapping[str, Tensor], where: str) -> tuple[RWKV7Config, int]:
    """Sizes and vocabulary of native tensors. Raises CheckpointError naming the tensor that would say them."""

    def shape(name: str, n_axes: int) -> tuple[int, ...]:
        found = tensors.get(name)
        if found is None or found.dim() != n_axes:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise CheckpointError(f"{where}: {name} {what}; an RWKV-7 checkpoint has it with {n_axes} axes.")
        return tuple(found.shape)

    n_vocabulary, d_model = shape("emb.weight", 2)
    layers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    sizes: dict[str, Any] = {
        "d_model": d_model,
        "n_layers": max(layers, default=0) + 1,
        "d_head": shape("blocks.0.att.r_k", 2)[1],
        "d_ff": shape("blocks.0.ffn.key.weight", 2)[0],
        "decay_rank": shape("blocks.0.att.w1", 2)[1],
        "rate_rank": shape("blocks.0.att.a1", 2)[1],
        "gate_rank": shape("blocks.0.att.g1", 2)[1],
        "initial_state": "learned" if "blocks.0.att.time_state" in tensors else "zero",
    }
    if len(layers) > 1:
        sizes["value_rank"] = shape("blocks.1.att.v1", 2)[1]
    try:
        return RWKV7Config(**sizes), n_vocabulary
    except ValueError as error:
        raise CheckpointError(f"{where} has sizes that no RWKV-7 model has: {sizes} ({error}).") from None


def _from_hugging_face(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name in _HF_TOP:
        return _HF_TOP[name], tensor
    layer = _HF_LAYER.fullmatch(name)
    if layer is None:
        return name, tensor
    prefix, rest = f"blocks.{layer[1]}.", layer[2]
    lora = _HF_LORA.fullmatch(rest)
    if lora is not None:
        return f"{prefix}att.{lora[1]}{_LORA_PARTS[lora[2]]}", tensor.T if tensor.dim() == 2 else tensor
    part, _, leaf = rest.rpartition(".")
    if part in _HF_PARTS:
        return f"{prefix}{_HF_PARTS[part]}.{leaf}", tensor
    if rest == "attn.x_x":
        return f"{prefix}att.x_rwkvag", tensor
    return prefix + re.sub(r"^attn\.", "att.", rest), tensor


def _plain_shape(name: str, tensor: Tensor) -> Tensor:
    """Vectors are stored as (1, 1, C) or (C, 1, 1) in some checkpoints, the six shifts as (6, 1, C)."""
    leaf = name.rpartition(".")[2]
    if leaf == "x_rwkvag" and tensor.dim() == 3:
        return tensor.flatten(1)
    if leaf in ("w0", "a0", "v0", "k_k", "k_a", "x_k") and tensor.numel() == max(tensor.shape, default=0):
        return tensor.flatten()
    return tensor


def _read_shards(path: Path) -> dict[str, Tensor]:
    names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise ValueError(f"it names {foreign[0]!r}, which is not a file beside it")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(load_file(path.with_name(name)))
    return tensors


def _read_cpp(path: Path) -> dict[str, Tensor]:
    """The rwkv.cpp format: six uint32, then for each tensor three, its sizes (fastest first), its name, its values."""
    data = path.read_bytes()
    version = struct.unpack_from("<6I", data)[1] if len(data) >= 24 else 0
    if version not in CPP_VERSIONS:
        raise ValueError(f"it is rwkv.cpp version {version}, not one of {CPP_VERSIONS}")
    tensors: dict[str, Tensor] = {}
    at = 24
    while at < len(data):
        try:
            n_axes, n_name, kind = struct.unpack_from("<3I", data, at)
            if n_axes > 4 or n_name > 1024 or kind not in CPP_DTYPES:
                raise ValueError(
                    f"at byte {at} is a tensor of {n_axes} axes and type {kind}; quantized files cannot be read, "
                    "use FP32 or FP16"
                )
            sizes = struct.unpack_from(f"<{n_axes}I", data, at + 12)
            start = at + 12 + 4 * n_axes + n_name
            name = data[start - n_name : start].decode()
            dtype, count = CPP_DTYPES[kind], torch.Size(sizes).numel()
            at = start + count * dtype.itemsize
            if at > len(data):
                raise ValueError(f"it ends inside {name}: it was cut off at {len(data)} bytes")
            tensor = torch.frombuffer(bytearray(data[start:at]), dtype=dtype).reshape(sizes[::-1])
        except struct.error:
            raise ValueError(f"it ends inside the head of a tensor at byte {at}") from None
        # its low-rank maps are transposed against the native ones
        tensors[name] = tensor.T if re.search(r"\.att\.[wavg][12]$", name) else tensor
    return tensors
