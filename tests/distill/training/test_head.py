"""The head that scores answers only, against TRL's own and against plain autograd."""

from __future__ import annotations

import torch
from torch.nn import functional

from distill.training.head import SLICE_TOKENS, AnswerLogProbs


def test_values_and_gradients_are_those_of_a_plain_log_softmax() -> None:
    """Each token weighted differently, over more than one slice."""
    torch.manual_seed(0)
    count, hidden, vocabulary = SLICE_TOKENS + 7, 16, 50
    weight_VH, targets_N = torch.randn(vocabulary, hidden), torch.randint(vocabulary, (count,))
    weights_N = torch.rand(count)
    states = [torch.randn(count, hidden).requires_grad_()]
    states.append(states[0].detach().clone().requires_grad_())
    log_probs, entropy, mean_logits, is_top1 = AnswerLogProbs.apply(states[0], weight_VH, targets_N)  # type: ignore[no-untyped-call]
    (log_probs * weights_N).sum().backward()

    logits_NV = states[1] @ weight_VH.T
    plain_NV = functional.log_softmax(logits_NV, dim=1)
    expected = plain_NV.gather(1, targets_N[:, None]).squeeze(1)
    (expected * weights_N).sum().backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(expected, log_probs)
    torch.testing.assert_close(states[1].grad, states[0].grad)
    torch.testing.assert_close(-(plain_NV.exp() * plain_NV).sum(1), entropy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_NV.mean(1), mean_logits)
    assert torch.equal(logits_NV.argmax(1) == targets_N, is_top1)


def test_without_a_gradient_none_is_computed() -> None:
    """A reference pass costs one product."""
    with torch.no_grad():
        log_probs, *_ = AnswerLogProbs.apply(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))  # type: ignore[no-untyped-call]
    assert not log_probs.requires_grad
