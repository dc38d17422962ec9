"""Edges of quantisation: shapes, dtypes, what is left alone, and rows that are no text."""

import copy

import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from ft_notebooks.course.four_bit_codes import plot_code_book
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantization_error import logits_distance, round_weight, weight_errors

TOK = tiny_tokenizer()
BITS = [32, 16, 8, 4]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(weight):  # NF4 without double quantisation, one block after the other
    code, flat = get_4bit_type("nf4", device="cpu"), weight.flatten()
    blocks = [(block, block.abs().max()) for block in flat.split(64)]
    return torch.cat([code[(block[:, None] / scale - code).abs().argmin(1)] * scale for block, scale in blocks]).view(
        weight.shape
    )


# round_weight


@pytest.mark.whole
@pytest.mark.parametrize(
    "shape", [(64, 48), (64, 32), (96, 80), (64, 50), (3, 112), (5, 13), (1, 1), (2, 576), (7, 1000)]
)
def test_four_bits_are_read_back_right_whatever_the_length_of_the_rows(shape):
    weight = normal(*shape).bfloat16().float()
    back, _ = round_weight(weight, 4)
    # the scales are within 2 % of their mean, by double quantisation; then a bfloat16
    assert_close(back, nearest(weight), rtol=0.01, atol=0.02 * weight.abs().max().item())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_float_dtype_is_rounded_and_stays_as_it_was(bits, dtype):
    weight = normal(64, 128).to(dtype)
    before = weight.clone()
    back, size = round_weight(weight, bits)
    assert (back.dtype, back.shape, type(size)) == (torch.float32, weight.shape, int)
    assert torch.equal(weight, before) and (back - weight.float()).abs().max() < 0.5


@pytest.mark.parametrize("bits", BITS)
def test_a_parameter_that_trains_gives_no_graph(bits):
    assert not round_weight(torch.nn.Parameter(normal(64, 64)), bits)[0].requires_grad


@pytest.mark.parametrize(
    "bits, size", [(32, 4 * 6144), (16, 2 * 6144), (8, 6144 + 4 * 64), (4, 6144 // 2 + 96 + 4 + 1092)]
)
def test_the_bytes_are_those_by_hand(bits, size):
    assert round_weight(normal(64, 96), bits)[1] == size


def test_the_error_grows_as_the_bits_go():
    weight = normal(64, 128)
    errors = [(round_weight(weight, bits)[0] - weight).norm().item() for bits in BITS]
    assert errors == sorted(errors) and errors[0] == 0 < errors[1]


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(bits):
    assert not round_weight(torch.zeros(64, 64), bits)[0].any()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_or_a_block_of_zeros_harms_no_other(bits):
    weight = normal(64, 64)
    weight[3] = 0
    back = round_weight(weight, bits)[0]
    assert not back[3].any() and back.isfinite().all() and (back - weight).norm() < 0.11 * weight.norm()


@pytest.mark.parametrize("bits", [3, 0, "4", None])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be"):
        round_weight(normal(64, 64), bits)


@pytest.mark.parametrize("weight", [normal(64), normal(2, 3, 4), torch.zeros(4, 4, dtype=torch.uint8)])
def test_what_is_no_matrix_of_floats_is_refused(weight):
    with pytest.raises(ValueError, match="a weight is a matrix of floats, got "):
        round_weight(weight, 4)


# weight_errors


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    weight_errors(model, 4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_the_head_is_left_out_and_every_other_linear_layer_is_in():
    names = {name for name, layer in tiny_model().named_modules() if type(layer) is torch.nn.Linear}
    assert set(weight_errors(tiny_model(), 8)) == names - {"lm_head"} and "lm_head" in names


def test_a_layer_of_zeros_has_no_error():
    model = tiny_model()
    torch.nn.init.zeros_(model.model.layers[0].mlp.up_proj.weight)
    assert weight_errors(model, 4)["model.layers.0.mlp.up_proj"][1] == 0


def test_a_model_without_linear_layers_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9))  # its layers are Conv1D
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no torch.nn.Linear beside its head"):
        weight_errors(model, 4)


# plot_code_book


def test_a_block_of_zeros_is_drawn_at_zero():
    heights = [bar.get_height() for bar in plot_code_book(torch.zeros(2, 64)).axes[0].patches]
    assert heights.index(max(heights)) == 50 and sum(map(bool, heights)) == 1


def test_a_drawing_is_unknown_to_pyplot_and_shows_the_weight_given():
    import matplotlib.pyplot as plt

    fig = plot_code_book(torch.nn.Parameter(torch.eye(64, dtype=torch.bfloat16)))
    assert plt.get_fignums() == []
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert [i for i, height in enumerate(heights) if height] == [50, 100]
    assert_close(heights[50] / heights[100], 63.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize("numbers", [0, 63, 100])
def test_what_is_no_whole_number_of_blocks_is_not_drawn(numbers):
    with pytest.raises(ValueError, match=f"the weight has {numbers} numbers"):
        plot_code_book(torch.ones(numbers))


# logits_distance


def test_every_token_weighs_the_same_whatever_its_row_and_order():
    p, q, texts = tiny_model(0), tiny_model(1), ["a", "to be or not to be"]
    alone = [logits_distance(p, q, **TOK([text])) for text in texts]
    sizes = [len(TOK(text).input_ids) for text in texts]
    together = logits_distance(p, q, **TOK(texts))
    for value, parts in zip(together, zip(*alone)):
        assert_close(value, sum(n * part for n, part in zip(sizes, parts)) / sum(sizes), rtol=1e-6, atol=0)
    assert_close(logits_distance(p, q, **TOK(texts[::-1])), together, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_left_out(side):
    texts = ["a", "to be or not to be"]
    padded = TOK(texts, padding=True, padding_side=side, return_tensors="pt")
    assert logits_distance(tiny_model(0), tiny_model(1), **padded) == logits_distance(
        tiny_model(0), tiny_model(1), **TOK(texts)
    )


def test_a_row_longer_than_a_chunk_is_counted_whole():
    p, q, ids = tiny_model(0), tiny_model(1), TOK("to be or not to be, " * 20).input_ids
    assert len(ids) > 3 * 128
    with torch.no_grad():
        one, other = (m(torch.tensor([ids])).logits[0].double().softmax(-1) for m in (p, q))
    kl, agreement = logits_distance(p, q, [ids])
    assert_close(kl, (one * (one / other).log()).sum(-1).mean().item(), rtol=1e-5, atol=0)
    assert agreement == (one.argmax(-1) == other.argmax(-1)).double().mean().item()


def test_agreement_is_the_share_of_tokens_with_the_same_argmax():
    p, q, rows = tiny_model(), tiny_model(), TOK(["to be or not to be", "that is the question"]).input_ids
    with torch.no_grad():
        for i, weight in enumerate(q.parameters()):
            weight += 0.02 * normal(*weight.shape, seed=i)
        best = [[m(torch.tensor([ids])).logits[0].argmax(-1) for ids in rows] for m in (p, q)]
    same = torch.cat([a == b for a, b in zip(*best)])
    assert 0 < same.sum() < len(same)
    assert logits_distance(p, q, rows)[1] == same.double().mean().item()


def test_a_constant_added_to_all_logits_is_no_distance():
    p, q = tiny_model(), tiny_model()
    q.lm_head = torch.nn.Linear(64, len(TOK))
    q.lm_head.weight, q.lm_head.bias = p.lm_head.weight, torch.nn.Parameter(torch.full((len(TOK),), 3.0))
    kl, agreement = logits_distance(p, q, **TOK(["to be"]))
    assert abs(kl) < 1e-6 and agreement == 1


def test_models_of_two_dtypes_are_compared_and_rows_may_be_empty():
    narrow = copy.deepcopy(tiny_model()).bfloat16()
    kl, agreement = logits_distance(tiny_model(), narrow, [TOK("to be or not").input_ids, []])
    assert 0 < kl < 0.01 and agreement > 0.8
    assert (kl, agreement) == logits_distance(tiny_model(), narrow, [TOK("to be or not").input_ids])


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_nothing_to_compare_on_is_refused(rows):
    with pytest.raises(ValueError, match=f"no token in {len(rows)} rows"):
        logits_distance(tiny_model(), tiny_model(), rows)


def test_all_padding_is_nothing_to_compare_on():
    with pytest.raises(ValueError, match="no token in 1 rows"):
        logits_distance(tiny_model(), tiny_model(), [[0, 0]], [[0, 0]])


def test_models_of_two_vocabularies_are_refused():
    other = tiny_model()
    other.resize_token_embeddings(len(TOK) + 5)
    with pytest.raises(ValueError, match=f"{len(TOK)} and {len(TOK) + 5} logits a token"):
        logits_distance(tiny_model(), other, **TOK(["a"]))


def test_a_mode_is_put_back_even_after_an_error():
    model = tiny_model().train()
    with pytest.raises(IndexError):
        logits_distance(model, model, [[10**6]])
    assert model.training
