"Texts in one row: edges of the layout, attention, architectures."

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.attention.varlen
from architectures import RIGHT, WRONG, model_of
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ft_notebooks.core.seams import attention_of
from ft_notebooks.kernels.shared_prompt import _sharing_error, pair_groups, prompt_groups, why_not_shared
from ft_notebooks.kernels.shared_rows import _blocks, _by_block, _flash, _has_flash, _shared_attention, shared_row
from ft_notebooks.loading.example_models import tiny_model

# the row


def row_mask(sizes):
    "The reference: each token attends to its own part and to its group's common prefix, up to itself."
    part = torch.arange(sizes.numel()).repeat_interleave(sizes.flatten())
    group = part // sizes.shape[1]
    kind = part % sizes.shape[1]
    sees = (kind == 0) | (kind == kind[:, None])
    return (sees & (group == group[:, None])).tril()


def row_of(batch):
    "The row of a batch of pairs, cut or not."
    half = len(batch["input_ids"]) // 2
    return shared_row(batch["input_ids"], batch["attention_mask"], [[i, half + i] for i in range(half)])


def texts(seed):
    draw = random.Random(seed)

    def some(low, high):
        return [draw.randint(1, 3) for _ in range(draw.randint(low, high))]

    return [
        {"prompt_ids": some(0, 6), "chosen_ids": some(1, 5), "rejected_ids": some(1, 5)}
        for _ in range(draw.randint(1, 4))
    ]


def check_row(row, ids, mask):
    "Every token that predicts a next one sees its own text up to itself, and nothing else."
    sees = row_mask(row.sizes)
    for text, real, places in zip(ids, mask.bool(), row.place):
        columns = real.nonzero()[:, 0].tolist()
        for t, column in enumerate(columns[:-1]):
            keys = sees[places[column]].nonzero().flatten()
            assert row.input_ids[0, keys].tolist() == text[real][: t + 1].tolist()
            assert row.position_ids[0, keys].tolist() == list(range(t + 1))
    assert row.input_ids.shape[1] == row.sizes.sum() == len(sees)


@pytest.mark.parametrize(
    "cut", [{}, {"max_length": 5}, {"max_length": 5, "truncation_mode": "keep_end"}], ids=["whole", "start", "end"]
)
@pytest.mark.parametrize("seed", range(6))
def test_every_token_of_a_pair_sees_its_own_text_up_to_itself_and_nothing_else(seed, cut):
    batch = DataCollatorForPreference(pad_token_id=0, **cut)(texts(seed))
    check_row(row_of(batch), batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("seed", range(6))
def test_every_token_of_a_group_sees_its_own_text_whatever_the_padding_and_the_order(seed):
    draw = random.Random(seed)
    prompts = [[draw.randint(1, 3) for _ in range(draw.randint(1, 5))] for _ in range(3)]
    which = [draw.randrange(3) for _ in range(7)]
    answers = [[draw.randint(1, 2) for _ in range(draw.randint(0, 4))] for _ in which]
    ids = torch.zeros(7, 12, dtype=torch.long)  # prompts end in column 6, answers begin in column 7
    mask = torch.zeros_like(ids)
    for n, (prompt, answer) in enumerate(zip(which, answers)):
        text = torch.tensor(prompts[prompt] + answer)
        start = 7 - len(prompts[prompt])
        ids[n, start : start + len(text)] = text
        mask[n, start : start + len(text)] = 1
    groups = [[n for n in range(7) if which[n] == prompt] for prompt in set(which)]
    row = shared_row(ids, mask, groups)
    check_row(row, ids, mask)
    used = [prompts[prompt] for prompt in set(which)]
    assert row.input_ids.shape[1] <= sum(len(p) - 1 for p in used) + sum(map(len, answers))


@pytest.mark.parametrize("seed", range(6))
def test_a_row_has_no_beginning_twice(seed):
    batch = DataCollatorForPreference(pad_token_id=0)(texts(seed))
    ids, half = batch["input_ids"].tolist(), len(batch["input_ids"]) // 2
    lengths = batch["attention_mask"].sum(1).tolist()
    needed = 0
    for i in range(half):
        a, b = ids[i][: lengths[i]], ids[i + half][: lengths[i + half]]
        begins = {tuple(text[: t + 1]) for text in (a, b) for t in range(len(text) - 1)}
        alike = next((t for t, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        needed += len(begins) + (0 < alike < min(len(a), len(b)))  # the last common token, where both go on
    assert row_of(batch).input_ids.shape[1] == needed


def test_pairs_are_found_where_no_text_is_padded_on_the_left():
    ids = torch.tensor([[0, 1, 2], [1, 2, 3], [1, 2, 0], [1, 1, 1]])
    mask = (ids > 0).long()
    assert pair_groups(ids[1:3], mask[1:3], ids) == [[0, 1]]
    assert pair_groups(ids, mask, ids) is None


def test_texts_of_one_prompt_are_found_wherever_they_stand_and_whatever_their_padding():
    ids = torch.tensor([[0, 5, 6, 7, 8], [3, 4, 6, 9, 0], [0, 5, 6, 1, 0], [5, 5, 6, 7, 0]])
    mask = (ids > 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    assert prompt_groups(ids, mask, labels) == [[0, 2], [1], [3]]
    assert prompt_groups(ids, mask, torch.full_like(ids, -100)) is None
    assert prompt_groups(ids, mask, ids) is None  # no prompt
    mask[0, 2] = 0
    assert prompt_groups(ids, mask, labels) is None  # an empty prompt, or one that ends in padding


# attention


def attended(sizes, dtype=torch.float32, heads=(4, 2), width=8):
    draw = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, sizes))
    return [
        torch.randn(1, h, tokens, width, generator=draw, dtype=dtype, requires_grad=True) for h in (*heads, heads[1])
    ]


SIZES = [
    [[5, 3, 4]],
    [[0, 3, 4], [2, 0, 0]],
    [[130, 1, 129], [1, 1, 1]],
    [[3, 0, 2], [300, 2, 2]],
    [[5, 3, 4, 2], [0, 2, 3, 1], [7, 0, 0, 0]],
]


@pytest.mark.numbers
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_by_block_is_attention_with_the_mask(sizes):
    query, key, value = attended(sizes)
    out, _ = _shared_attention(torch.nn.Module(), query, key, value, torch.tensor(sizes)[None, None])
    wanted = scaled_dot_product_attention(query, key, value, row_mask(torch.tensor(sizes)), enable_gqa=True).transpose(
        1, 2
    )
    slope = torch.randn_like(wanted)
    assert_close(out, wanted, atol=2e-6, rtol=1e-4)
    grads, expected = (torch.autograd.grad(x, (query, key, value), slope) for x in (out, wanted))
    assert_close(grads, expected, atol=5e-6, rtol=1e-4)


@pytest.mark.numbers
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_flash_attention_is_given_each_blocks_queries_and_keys(sizes, monkeypatch):
    "The kernel needs a GPU; here stands what it promises: causal, the last query with the last key."

    def varlen_attn(q, k, v, at_q, at_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
        assert window_size == (-1, 0) and at_q.dtype == at_k.dtype == torch.int32
        assert longest_q == at_q.diff().max() and longest_k == at_k.diff().max()
        parts = []
        for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:]):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(int(d - c - (b - a)))
            part = [x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
            parts.append(scaled_dot_product_attention(*part, mask, scale=scale, enable_gqa=enable_gqa).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    query, key, value = attended(sizes)
    wanted = scaled_dot_product_attention(query, key, value, row_mask(torch.tensor(sizes)), enable_gqa=True).transpose(
        1, 2
    )
    assert_close(_flash(query, key, value, sizes, 8**-0.5), wanted, atol=2e-6, rtol=1e-4)
    assert_close(_by_block(query, key, value, sizes, 8**-0.5), wanted, atol=2e-6, rtol=1e-4)


def test_blocks_hold_every_query_once_in_their_order():
    at = [
        i
        for queries, *_ in _blocks([[130, 1, 129], [0, 0, 3], [4, 0, 0]], 50)
        for i in range(queries.start, queries.stop)
    ]
    assert at == list(range(267))


def test_dropout_is_applied_and_unknown_attention_is_refused():
    sizes = torch.tensor([[5, 3, 4]])[None, None]
    query, key, value = attended(sizes[0, 0].tolist())
    plain, dropped = (_shared_attention(torch.nn.Module(), query, key, value, sizes, dropout=p)[0] for p in (0.0, 0.5))
    assert (plain - dropped).abs().max() > 0.1
    for name, other in {"softcap": 30.0, "s_aux": torch.zeros(4), "is_causal": False}.items():
        with pytest.raises(ValueError, match="a shared prompt does not support"):
            _shared_attention(torch.nn.Module(), query, key, value, sizes, **{name: other})


# architectures


@pytest.mark.parametrize(
    ("capability", "dtype", "runs"),
    [
        ((7, 5), torch.float16, False),
        ((8, 0), torch.float16, True),
        ((8, 9), torch.bfloat16, True),
        ((9, 0), torch.float32, False),
    ],
)
def test_the_flash_kernel_is_taken_in_16_bits_on_a_card_that_has_it(capability, dtype, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _has_flash(SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)) == runs
    assert not _has_flash(SimpleNamespace(device=torch.device("cpu"), dtype=dtype))


@pytest.mark.numbers
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", RIGHT)
def test_the_row_is_as_good_as_the_texts_alone(kind, attention):
    model = model_of(kind, RIGHT[kind], attention)
    assert why_not_shared(model) is None and _sharing_error(model)[0] < 1e-4
    assert attention_of(model) == attention


def test_a_model_whose_logits_depend_on_padding_is_shared_without_padding_on_the_left_alone():
    "GPT-2 learns a vector for each column of the batch, so that TRL trains other positions where a text is padded."
    columns = model_of("gpt2", RIGHT["gpt2"])
    assert why_not_shared(columns) is None and "padded on the left" in why_not_shared(columns, "left")
    assert why_not_shared(model_of("llama", {}), "left") is None


@pytest.mark.numbers
@pytest.mark.bfloat16
def test_rounding_alone_turns_nothing_off():
    error, rounding = _sharing_error(tiny_model().bfloat16())
    assert max(error, rounding) < 0.025  # 2·u·√(20·layers): u = 2⁻⁹, two layers, some 20 roundings in each
    assert why_not_shared(tiny_model().bfloat16()) is None


@pytest.mark.parametrize("kind", WRONG)
def test_an_architecture_that_would_be_wrong_is_found(kind):
    fields, reason = WRONG[kind]
    assert reason in (why_not_shared(model_of(kind, fields)) or "None"), why_not_shared(model_of(kind, fields))


def test_experts_that_are_balanced_over_all_tokens_are_left_as_they_are():
    model = model_of("mixtral", {"num_local_experts": 4, "output_router_logits": True})
    assert "balances its experts" in why_not_shared(model)


def test_the_measure_leaves_mode_weights_and_random_numbers_as_they_were():
    model, state = tiny_model().train(), torch.get_rng_state()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert why_not_shared(model) is None
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
