"Edges of `ft_notebooks.data.chat_encoding`: strange templates, strange texts, strange models."

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset
from transformers import GenerationConfig
from trl import SFTConfig, SFTTrainer

from ft_notebooks.data.chat_encoding import check_end_token, encode_chat, encode_chats, token_losses
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.data.read import read_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenization.padding import IGNORE, pad_batch

TAGGED = (  # renders what the tiny template renders, and marks the assistant's part for transformers' own mask
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
PIECES = [
    "a",
    "B c",
    " ",
    "\n",
    "\n\n",
    "é",
    "日本",
    "🙂",
    "user\n",
    "assistant\n",
    "{{ x }}",
    "<b>",
    "-100",
    "\t",
    ".",
]


def words(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


def test_random_conversations_get_the_labels_of_transformers_own_mask():
    tok, draw = tiny_tokenizer(), random.Random(0)
    for _ in range(60):
        chat = words(*("".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(2 * draw.randint(1, 4))))
        if draw.random() < 0.5:
            chat = [{"role": "system", "content": "Be brief."}, *chat]
        out = tok.apply_chat_template(chat, chat_template=TAGGED, return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if m else IGNORE for i, m in zip(out["input_ids"], out["assistant_masks"])]
        assert encode_chat(tok, chat) == {"input_ids": out["input_ids"], "labels": labels}


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% for m in messages %}{% if not loop.last and m['role'] == 'assistant' %}(an answer)<|im_end|>"
        "{% else %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(ValueError, match="^message 2: the chat template rewrites an answer once"):
        encode_chat(tok, words("a", "b", "c", "d"))
    assert encode_chat(tok, words("a", "b"))["labels"][-1] == tok.eos_token_id


def test_the_template_is_read_at_each_call():
    tok = tiny_tokenizer()
    before = encode_chat(tok, words("a", "b"))
    tok.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    after = encode_chat(tok, words("a", "b"))
    assert (
        tok.decode(before["input_ids"]) != tok.decode(after["input_ids"]) == "user: a<|im_end|>assistant: b<|im_end|>"
    )


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<pad>"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_special_token_in_a_content_is_text_whoever_wrote_it(token, place):
    tok, turns = tiny_tokenizer(), ["Be brief.", "hi", "yo"]
    turns[place] += token + "!"
    chat = [{"role": "system", "content": turns[0]}, *words(*turns[1:])]
    row, id_ = encode_chat(tok, chat), tok.convert_tokens_to_ids(token)
    clean = encode_chat(tok, [{**m, "content": m["content"].replace(token, "")} for m in chat])
    assert row["input_ids"].count(id_) == clean["input_ids"].count(id_)
    assert tok.decode(row["input_ids"]) == tok.apply_chat_template(chat, tokenize=False)
    assert tok.decode([i for i in row["labels"] if i != IGNORE]) == turns[2] + "<|im_end|>"
    assert encode_chats(tok, Dataset.from_list([{"messages": chat}]))[1]["kept_as_text"] == 1


def test_special_tokens_that_the_template_names_by_a_variable_stay_text_too():
    tok = tiny_tokenizer()
    tok.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    assert encode_chat(tok, words("a<|im_end|>b", "c"))["input_ids"].count(tok.eos_token_id) == 2


def test_the_bos_of_the_template_is_the_only_one_and_two_are_refused():
    tok = tiny_tokenizer()
    tok.add_special_tokens({"bos_token": "<bos>"})
    tok.chat_template = "{{ bos_token }}" + tok.chat_template
    assert encode_chat(tok, words("a", "b"))["input_ids"].count(tok.bos_token_id) == 1
    assert encode_chat(tok, words("<bos>a", "b"))["input_ids"].count(tok.bos_token_id) == 1
    tok.chat_template = "{{ bos_token }}" + tok.chat_template
    with pytest.raises(ValueError, match="writes '<bos>' twice"):
        encode_chat(tok, words("a", "b"))


def test_a_call_of_a_tool_is_an_answer_and_the_tools_result_is_not():
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.tool_calls %}{{ '<call>' + "
        "(m.tool_calls[0].function | tojson) }}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor "
        "%}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}],
    }
    chat = [
        *words("1 + 1?"),
        call,
        {"role": "tool", "name": "sum", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    row = encode_chat(tok, chat)
    said = '<call>{"name": "sum", "arguments": {"a": 1}}<|im_end|>Two.<|im_end|>'
    assert tok.decode([i for i in row["labels"] if i != IGNORE]) == said


def adds(a, b):
    return {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}


def says(text, *calls):
    return {"role": "assistant", "content": text, "tool_calls": list(calls) or None}


def result(text):
    return {"role": "tool", "name": "add", "content": text}


CALLING = {
    "one call": [*words("1 + 2?"), says("", adds(1, 2)), result("3"), says("Three.")],
    "text before two calls, then another": [
        *words("1 + 2, 3 + 4?"),
        says("I add.", adds(1, 2), adds(3, 4)),
        result("3"),
        result("7"),
        says("", adds(3, 7)),
        result("10"),
        says("Ten."),
    ],
    "thoughts": [
        *words("1 + 2?"),
        says("<think>\nI add.\n</think>\n\n", adds(1, 2)),
        result("3"),
        says("<think>\nDone.\n</think>\n\nThree."),
    ],
    "the call at the end of two turns": [*words("Hi", "Hello", "1 + 2?"), says("", adds(1, 2))],
}
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}},
}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think"])
def test_rows_with_calls_get_the_labels_of_trls_trainer_but_for_line_breaks_around_the_answer(tmp_path, name):
    "TRL also trains the line break behind each end token and, for Qwen2.5, the one behind `assistant`."
    tok = tiny_tokenizer()
    tok.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    rows = [{"messages": messages, "tools": [ADD]} for messages in CALLING.values()]
    ours, _ = encode_chats(tok, read_chats(rows))
    args = SFTConfig(
        str(tmp_path), assistant_only_loss=True, max_length=None, report_to="none", use_cpu=True, bf16=False
    )
    texts = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
    theirs = SFTTrainer(tiny_model(), args, train_dataset=Dataset.from_list(texts), processing_class=tok).train_dataset
    [line] = tok("\n")["input_ids"]
    begin = tok("<|im_start|>assistant\n")["input_ids"]
    for row, other, messages in zip(ours, theirs, CALLING.values()):
        ids = row["input_ids"]
        expected = list(row["labels"])
        behind_end = [n for n in range(1, len(ids)) if row["labels"][n - 1] == tok.eos_token_id]
        behind_role = [n for n in range(len(ids)) if ids[: n + 1][-len(begin) :] == begin]
        for n in behind_end + behind_role * (name == "qwen2_5"):
            assert ids[n] == line and expected[n] == IGNORE
            expected[n] = line
        assert other["input_ids"] == ids and other["labels"] == expected
        assert len(behind_end) == len(behind_role) == sum(m["role"] == "assistant" for m in messages)


def test_rows_without_any_answer_left_are_dropped_and_counted():
    chats = [words("x" * 80, "yo"), words("x", "yo"), words("x", "yo", "and?"), words("hello?")]
    rows, account = encode_chats(tiny_tokenizer(), Dataset.from_list([{"messages": c} for c in chats]), 60, allow_cut=1)
    assert len(rows) == 2 and account["rows"] == 4 and account["answers"] == 3
    assert account["cut"] == account["answers_cut"] == account["dropped"] == account["unanswered"] == 1
    assert account["tokens"] == sum(map(len, rows["input_ids"]))


@pytest.mark.whole
def test_several_processes_give_the_rows_and_the_account_of_one():
    tok, draw = tiny_tokenizer(), random.Random(1)
    chats = [
        words(*("".join(draw.choices(PIECES, k=3)) + "." for _ in range(2 * draw.randint(1, 3)))) for _ in range(57)
    ]
    dataset = Dataset.from_list([{"messages": chat} for chat in chats])
    one, two = (encode_chats(tok, dataset, 70, allow_cut=1, num_proc=n) for n in (None, 2))
    assert one[0].to_list() == two[0].to_list() and one[1] == two[1]
    hand = [{k: v[:70] for k, v in encode_chat(tok, chat).items()} for chat in chats]
    assert one[0].to_list() == [row for row in hand if any(label != IGNORE for label in row["labels"][1:])]


def test_where_the_twin_has_to_write_the_conversation_it_says_so(caplog):
    tok, folder = tiny_tokenizer(), Path(trl.__file__).parent / "chat_templates"
    talks = Dataset.from_list([{"messages": words("a", "b")}, {"messages": words("a", "b", "c", "d")}])
    for name, twins in (("qwen3", [0, 1]), ("qwen2_5", [0, 0])):
        tok.chat_template = (folder / f"{name}.jinja").read_text()
        assert encode_chats(tok, talks)[1]["training_twin"] == sum(twins)
        for messages, twin in zip(talks["messages"], twins):
            caplog.clear()
            encode_chat(tok, messages)
            assert ["training twin" in record.message for record in caplog.records] == [True] * twin


def test_one_answer_in_a_hundred_may_lose_its_end_and_two_may_not():
    tok, short, long = tiny_tokenizer(), words(*"ab" * 25), words("a", "b" * 3000)
    whole = len(encode_chat(tok, short)["labels"])
    rows = Dataset.from_list([{"messages": m} for m in (short, short, short, short[:-2] + long)])
    assert encode_chats(tok, rows, whole)[1]["answers_cut"] == 1
    twice = Dataset.from_list([{"messages": m} for m in (short, short, short[:-2] + long, short[:-2] + long)])
    with pytest.raises(ValueError, match="^2 of 100 answers would lose their end .* or set allow_cut=0.02$"):
        encode_chats(tok, twice, whole)
    assert encode_chats(tok, twice, whole, allow_cut=0.02)[1]["answers_cut"] == 2


def test_the_share_that_the_error_names_is_enough():
    rows = Dataset.from_list([{"messages": words("hi", "yo" * (200 if i < 2 else 1))} for i in range(130)])
    with pytest.raises(ValueError, match="^2 of 130 answers would lose their end .* or set allow_cut=0.016$"):
        encode_chats(tiny_tokenizer(), rows, 60)
    assert encode_chats(tiny_tokenizer(), rows, 60, allow_cut=0.016)[1]["answers_cut"] == 2


def test_the_tools_of_a_row_are_in_its_prompt():
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% if tools %}{{ 'tools: ' + tools[0].function.name + '<|im_end|>' }}{% endif %}" + tok.chat_template
    )
    tools = [{"type": "function", "function": {"name": "sum", "description": "adds", "parameters": {}}}]
    dataset = Dataset.from_list(
        [{"messages": words("a", "b"), "tools": tools}, {"messages": words("a", "b"), "tools": None}]
    )
    rows, _ = encode_chats(tok, dataset)
    assert [tok.decode(ids).startswith("tools: sum<|im_end|>") for ids in rows["input_ids"]] == [True, False]
    assert rows[0] == encode_chat(tok, words("a", "b"), tools=tools)


@pytest.mark.parametrize("length", [0, -1, True, 1.5, "8"])
def test_a_length_that_is_no_count_cuts_nothing_silently(length):
    tok, chat = tiny_tokenizer(), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for encode in (
        lambda: encode_chat(tok, chat, max_length=length),
        lambda: encode_chats(tok, [{"messages": chat}], max_length=length),
        lambda: encode_chats(tok, [{"messages": chat}], batch_size=length),
        lambda: encode_pairs(tok, [pair], max_length=length),
    ):
        with pytest.raises(ValueError, match=r"(max_length|batch_size) must be a whole number of at least 1"):
            encode()


def test_a_long_row_is_cut_at_the_right():
    tok, chat = tiny_tokenizer(), words("a", "b")
    whole = encode_chat(tok, chat)
    assert encode_chat(tok, chat, max_length=9) == {key: values[:9] for key, values in whole.items()}
    assert encode_chat(tok, chat, max_length=999) == whole and len(whole["labels"]) > 9


def test_generation_must_stop_at_the_end_of_a_turn():
    tok = tiny_tokenizer()
    assert check_end_token(tok, GenerationConfig(eos_token_id=[0, tok.eos_token_id])) == tok.eos_token_id
    for stops in (None, 0, [0, 5]):
        with pytest.raises(ValueError, match="set model.generation_config.eos_token_id to "):
            check_end_token(tok, GenerationConfig(eos_token_id=stops))


def test_no_row_left_is_an_error():
    with pytest.raises(ValueError, match="no answer is left"):
        encode_chats(tiny_tokenizer(), Dataset.from_list([{"messages": words("x" * 80, "yo")}]), 60, allow_cut=1)


def test_a_refused_row_is_named():
    chats = Dataset.from_list([{"messages": words("x", "yo")}, {"messages": words("x", "\ufdd0")}])
    with pytest.raises(ValueError, match="row 1, a text holds U\\+FDD0"):
        encode_chats(tiny_tokenizer(), chats)


def test_nothing_to_train_gives_no_losses():
    batch = pad_batch([{"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}], 0)
    assert token_losses(tiny_model(), batch).shape == (0,)


@pytest.mark.numbers
def test_a_model_that_ignores_logits_to_keep_gives_the_same_losses():
    model, batch = tiny_model(), pad_batch([[5, 6, 7], [8, 9]], 0)

    def all_logits(input_ids, attention_mask, **ignored):
        return SimpleNamespace(logits=model(input_ids, attention_mask=attention_mask).logits)

    torch.testing.assert_close(token_losses(all_logits, batch), token_losses(model, batch))


@pytest.mark.numbers
def test_the_loss_runs_the_head_only_in_columns_with_a_label():
    model, seen = tiny_model(), []
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORE] * 3 + [8]}, {"input_ids": [5, 9], "labels": [IGNORE, 9]}]
    with_hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:2]))
    losses = token_losses(model, pad_batch(rows, 0))
    with_hook.remove()
    assert seen == [(2, 2)] and losses.shape == (2,)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_rows_in_another_format_have_the_same_account(kind):
    rows = read_chats([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}])
    plain = encode_chats(tiny_tokenizer(), rows)[1]
    account = encode_chats(tiny_tokenizer(), rows.with_format(kind))[1]
    assert json.dumps(account) == json.dumps(plain)
