"""Relevance of an answer to its prompt: the cosine of two sentence embeddings, as a part of the reward.

A small encoder with a small adapter learns the look of bad answers sooner than the topic of a question. A backbone
that is a sentence encoder already knows topics: its embeddings without the adapter distinguish answers to this
question from answers to others. The adapter brings the weight, as for every feature (``gateway.reward.features``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel

from gateway.errors import SettingsError

# Good answers have a cosine of .5 to .75; a closer one repeats the question, and earns no more.
CEILING = 0.7


class Relevance:
    """Weighted cosine of the mean-pooled embeddings of prompt and answer, up to a ceiling.

    Args:
        encoder: The backbone without head and adapter.
        weight: Logits for each unit of cosine.
        first_id: The token that begins every text (``[CLS]``).
        pad_id: The padding token.
    """

    def __init__(self, encoder: Any, *, weight: float, first_id: int, pad_id: int) -> None:
        self.weight = weight
        self._encoder = encoder
        self._first_id = first_id
        self._pad_id = pad_id

    @classmethod
    def load(cls, model: str, weight: float, tokenizer: Any, *, device: torch.device, dtype: torch.dtype) -> Relevance:
        """Load the backbone without its adapter.

        Raises:
            SettingsError: The tokenizer does not separate a pair's two texts.
        """
        if not reads_pairs(tokenizer):
            raise SettingsError(f"reward model {model} cannot weigh relevance: it does not read pairs")
        encoder = AutoModel.from_pretrained(
            model, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa"
        )
        return cls(
            encoder.to(device).eval(), weight=weight, first_id=tokenizer.cls_token_id, pad_id=tokenizer.pad_token_id
        )

    def __call__(self, input_ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the weighted relevance of each pair's second text to its first, float32 (B,) on the device.

        Args:
            input_ids: Pairs as the classifier reads them: first text (type 0) and second text (type 1).
            type_ids: The text (0 or 1) of each token.
        """
        texts: dict[tuple[int, ...], int] = {}  # the candidates of a race share their prompt, which is embedded once
        places = []
        for ids, types in zip(input_ids, type_ids, strict=True):
            split = types.index(1)
            pair = (tuple(ids[:split]), (self._first_id, *ids[split:]))
            places.append([texts.setdefault(text, len(texts)) for text in pair])
        embedded_UH = self._embed(list(texts))
        both_B2H = embedded_UH[torch.tensor(places, device=embedded_UH.device)]
        return self.weight * (both_B2H[:, 0] * both_B2H[:, 1]).sum(dim=-1).clamp(max=CEILING)

    def _embed(self, texts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return unit vectors (U unique texts, H), float32: the mean over tokens of the last layer."""
        # Questions are short and answers long: padded to one width, half of the computation would be padding.
        by_size: dict[int, list[int]] = {}
        for place, text in enumerate(texts):
            by_size.setdefault(len(text).bit_length(), []).append(place)
        embedded_UH = torch.cat([self._embed_alike([texts[place] for place in group]) for group in by_size.values()])
        order = torch.tensor([place for group in by_size.values() for place in group], device=embedded_UH.device)
        return embedded_UH[order.argsort()]

    def _embed_alike(self, texts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Embed texts whose lengths differ by less than a factor of two."""
        device = self._encoder.device
        width = max(map(len, texts))
        ids_UT = torch.full((len(texts), width), self._pad_id, dtype=torch.long)
        mask_UT = torch.zeros((len(texts), width), dtype=torch.long)
        for row, text in enumerate(texts):
            ids_UT[row, : len(text)] = torch.tensor(text)
            mask_UT[row, : len(text)] = 1
        ids_UT, mask_UT = ids_UT.to(device), mask_UT.to(device)
        hidden_UTH = self._encoder(input_ids=ids_UT, attention_mask=mask_UT).last_hidden_state.float()
        summed_UH = (hidden_UTH * mask_UT[..., None]).sum(dim=1)
        return torch.nn.functional.normalize(summed_UH, dim=-1)


def reads_pairs(tokenizer: Any) -> bool:
    """Return True if a model with this tokenizer reads prompt and answer as two texts: each can be embedded."""
    return "token_type_ids" in tokenizer.model_input_names and not tokenizer.chat_template
