"""The language-model head for training: log-probabilities of answer tokens only, with the gradient in the same pass.

SmolLM2's head has 28 of its 135 million weights. On a CPU TRL's own head scores every position, the prompt's too, and
multiplies once more in the backward pass. Here the gradient is computed from the logits of a slice of answer tokens in
the forward pass, so that each token costs two products, and only one slice's logits are in memory.

Shapes: N answer tokens, H hidden size, V vocabulary, B rows, T positions.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput

from distill.training.encode import IGNORED

SLICE_TOKENS = 256
"""Answer tokens whose logits are in memory at once."""


class AnswerLogProbs(torch.autograd.Function):
    """Log-probability, entropy and mean logit of each answer token; only the first is differentiable, by hidden.

    A token's log-probability depends on its own hidden state alone, so its gradient is known in the forward pass except
    for a factor: d log p(y) / d hidden = W[y] − Σ_v p(v) · W[v].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score N tokens.

        Args:
            ctx: Autograd's.
            hidden_NH: The last layer's output, any float dtype.
            weight_VH: The frozen head.
            targets_N: int64 token ids.

        Returns:
            Log-probabilities, entropies, mean logits (float32) and whether each target is the likeliest, all (N,).
        """
        count = len(targets_N)
        log_probs_N, entropy_N, mean_N = (hidden_NH.new_zeros(count, dtype=torch.float32) for _ in range(3))
        top_N = torch.zeros(count, dtype=torch.bool, device=hidden_NH.device)
        wanted = ctx.needs_input_grad[0]
        gradient_NH = torch.empty_like(hidden_NH) if wanted else hidden_NH.new_empty(0)
        for start in range(0, count, SLICE_TOKENS):
            part = slice(start, start + SLICE_TOKENS)
            targets = targets_N[part, None]
            logits_SV = functional.linear(hidden_NH[part], weight_VH).float()
            chosen = logits_SV.gather(1, targets).squeeze(1)
            mean_N[part] = logits_SV.mean(1)
            top_N[part] = logits_SV.argmax(1) == targets.squeeze(1)
            normalizer = logits_SV.logsumexp(1)
            log_probs_N[part] = chosen - normalizer
            probs_SV = functional.softmax(logits_SV, dim=1)
            entropy_N[part] = normalizer - torch.linalg.vecdot(probs_SV, logits_SV)
            if wanted:
                expected_SH = probs_SV.to(weight_VH.dtype) @ weight_VH
                gradient_NH[part] = weight_VH[targets.squeeze(1)] - expected_SH
        ctx.save_for_backward(gradient_NH)
        ctx.mark_non_differentiable(entropy_N, mean_N, top_N)
        return log_probs_N, entropy_N, mean_N, top_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grads[0][:, None].to(gradient_NH.dtype), None, None


def score_answers_only(model: Any) -> None:
    """Make ``model(…, labels=…, fused_lm_head=True)``, which TRL's trainers call, score labelled positions only.

    Args:
        model: A causal language model with a frozen head, TRL's own fused head already added to it. Rows are padded on
            the right, so no real token attends to padding: the padding mask is dropped, which is faster.
    """
    with_logits = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return with_logits(*args, labels=labels, **kwargs)
        kwargs.pop("attention_mask", None)
        hidden_BTH = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        targets_BT = labels[:, 1:]
        weight_VH = self.get_output_embeddings().weight
        if isinstance(weight_VH, DTensor):  # a shard, under FSDP
            weight_VH = weight_VH.full_tensor()
        mask_BT = targets_BT != IGNORED
        scored = AnswerLogProbs.apply(hidden_BTH[mask_BT], weight_VH, targets_BT[mask_BT])  # type: ignore[no-untyped-call]
        log_probs, entropy, mean_logits, is_top1 = (
            value_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, value_N) for value_N in scored
        )
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1, label_mask=mask_BT
        )

    model.forward = types.MethodType(forward, model)
