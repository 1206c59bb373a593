"""Checkpoints: written aside, made durable, renamed, with checksums; never pickle.

checkpoints/00000042/
├── tensors.safetensors    every tensor of the tree
├── state.json             the tree, with {"$tensor": name} where a tensor belongs
└── manifest.json          schema number and SHA-256 of the two, written last
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from livelm.errors import CheckpointError, StorageError

SCHEMA = 2
"""2: with growth, signals and policies of learning; schema 1 lacks what these need."""
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save_checkpoint(folder: Path, index: int, tree: dict[str, Any], keep: int) -> Path:
    """Write a complete checkpoint under `folder`, then delete all but the newest `keep`.

    Raises StorageError when the disk refuses; what was saved before stays.
    """
    final, aside = folder / f"{index:08d}", folder / f".{index:08d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        tensors: dict[str, Tensor] = {}
        plain = _split(tree, "", tensors)
        save_file(tensors, aside / TENSORS)
        (aside / STATE).write_text(json.dumps(plain), "utf-8")
        sums = {name: _checksum(aside / name) for name in (TENSORS, STATE)}
        (aside / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "sha256": sums}), "utf-8")
        for name in (TENSORS, STATE, MANIFEST):
            sync_path(aside / name)
        sync_path(aside)
        if final.exists():
            _remove(final)
        aside.rename(final)
        sync_path(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(
            f"the checkpoint {str(final)!r} cannot be written: {error}. The one before it is intact; "
            "make room and go on with `livelm resume`."
        ) from None
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint back to the tree that was saved.

    Raises CheckpointError naming the file for a flipped byte, a missing part, a newer or an older schema.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["schema"] > SCHEMA:
            raise CheckpointError(
                f"{str(path)!r} has schema {manifest['schema']}, this livelm reads up to {SCHEMA}. Upgrade livelm."
            )
        if manifest["schema"] < SCHEMA:
            raise CheckpointError(
                f"{str(path)!r} has schema {manifest['schema']} and was written by an earlier livelm; this one reads "
                f"{SCHEMA}. Go on with the livelm that wrote it, or begin a new run."
            )
        for name, expected in manifest["sha256"].items():
            if _checksum(path / name) != expected:
                raise CheckpointError(
                    f"{str(path / name)!r} does not match its checksum: it was damaged after it was written. "
                    "Delete this checkpoint folder to go on from the one before."
                )
        return _join(json.loads((path / STATE).read_text("utf-8")), load_file(path / TENSORS))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} is not a readable checkpoint: {error!r}.") from None


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob("[0-9]*") if p.name.isdecimal() and (p / MANIFEST).exists()]
    return sorted(found, key=lambda p: int(p.name))


def _remove(path: Path) -> None:
    """Delete a checkpoint so that at no moment half of it can pass for a whole one."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)  # left by a kill
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        # contiguous copies: safetensors refuses two names for one memory
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(node, dict):
        # JSON turns keys into text; optimizers number their parameters, so integers are marked
        return {f"#{k}" if isinstance(k, int) else k: _split(v, f"{name}/{k}", tensors) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_split(v, f"{name}/{i}", tensors) for i, v in enumerate(node)]
    return node


def _join(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if "$tensor" in node:
            return tensors[node["$tensor"]]
        return {int(k[1:]) if k.startswith("#") else k: _join(v, tensors) for k, v in node.items()}
    if isinstance(node, list):
        return [_join(v, tensors) for v in node]
    return node
