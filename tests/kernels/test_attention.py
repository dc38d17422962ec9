"Edges of the kernels in `ft_notebooks.kernels`: masks, documents and labels of any number."

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers.masking_utils import sdpa_mask

from ft_notebooks.kernels.attention import block_attention, document_mask
from ft_notebooks.kernels.fused_layers import lora_linear
from ft_notebooks.kernels.log_probs import label_log_probs


@pytest.mark.numbers
@pytest.mark.parametrize("reach", ["later tokens", "a window", "the document"])
def test_only_a_mask_that_is_causal_in_each_document_becomes_bounds(reach):
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])

    def sees(batch, head, query, key):
        causal = (ids[query] == ids[key]) & (key <= query)
        return {"later tokens": ids[query] == ids[key], "a window": causal & (key > query - 2), "the document": causal}[
            reach
        ]

    given = dict(mask_function=sees, q_length=8, kv_length=8, batch_size=1, allow_is_causal_skip=False)
    found = document_mask(**given)
    if reach == "the document":
        assert found.tolist() == [0, 3, 7, 8]
    else:
        assert torch.equal(found, sdpa_mask(**given))


@pytest.mark.parametrize("bounds", [[0, 1, 2, 3], [0, 7], [0, 1, 6, 7]])
def test_documents_of_one_token_and_a_single_document(bounds):
    torch.manual_seed(0)
    query, key, value = (torch.randn(heads, 7, 4, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2))
    cut = [x[:, : bounds[-1]].detach().requires_grad_() for x in (query, key, value)]
    blocks = [(slice(start, end), slice(start, end)) for start, end in itertools.pairwise(bounds)]
    assert torch.autograd.gradcheck(lambda *qkv: block_attention(*qkv, blocks, 0.5), cut)


@pytest.mark.numbers
def test_lora_linear_lets_a_frozen_input_be_and_takes_a_bias():
    x, weight, bias, A, B = torch.randn(2, 5), torch.randn(4, 5), torch.randn(4), torch.randn(2, 5), torch.randn(4, 2)
    A.requires_grad_(), B.requires_grad_()
    y = lora_linear(x, weight, bias, A, B, 0.5)
    assert_close(y, x @ weight.T + bias + 0.5 * x @ A.T @ B.T)
    dA, dB = torch.autograd.grad(y.sum(), (A, B))
    assert_close(dB, 0.5 * (x @ A.T).sum(0).expand(4, 2))


@pytest.mark.numbers
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 511, 512, 513, 1030])
def test_log_probs_of_any_number_of_labels(n):
    hidden, weight, targets = torch.randn(n, 16, requires_grad=True), torch.randn(40, 16), torch.randint(40, (n,))
    scores = (hidden @ weight.T).log_softmax(-1)
    log_probs, entropy, top = label_log_probs(hidden, weight, targets)
    assert_close(log_probs, scores.gather(1, targets[:, None])[:, 0])
    assert_close(entropy, -(scores.exp() * scores).sum(-1).detach(), atol=1e-4, rtol=1e-5)
    assert torch.equal(top, scores.argmax(-1) == targets)
    g = torch.rand(n)
    assert_close(
        *(torch.autograd.grad((s * g).sum(), hidden)[0] for s in (log_probs, scores.gather(1, targets[:, None])[:, 0]))
    )


def test_of_two_equal_logits_only_the_first_is_the_most_likely_as_trl_counts():
    weight = torch.ones(5, 3)
    hidden = torch.ones(5, 3)
    assert label_log_probs(hidden, weight, torch.arange(5))[2].tolist() == [True, False, False, False, False]
