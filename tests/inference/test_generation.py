"Edges of `ft_notebooks.inference.generation`."

import json
import os
import signal
import threading

import pytest
import torch
from datasets import Dataset
from small_runs import forked
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.evaluation.likelihood import row_losses
from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.inference.generation import answers, encode_prompts, generate, greedy_answers, greedy_decoding
from ft_notebooks.inference.prefix_cache import rows_can_leave, shared_prefix
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.padding import IGNORE, load_tokenizer

ROWS = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])
ASK = [[{"role": "user", "content": text}] for text in ("a", "a longer question", "b")]


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text).input_ids


def lengths(patch) -> list[list[int]]:
    "The lengths of the prompts in each batch that a tiny model generates from here on."
    batches, given = [], LlamaForCausalLM.generate
    patch.setattr(
        LlamaForCausalLM,
        "generate",
        lambda model, **fields: batches.append(fields["attention_mask"].sum(1).tolist()) or given(model, **fields),
    )
    return batches


def sliding() -> MistralForCausalLM:
    "A random model whose layers attend to the last six tokens alone."
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, sliding_window=6, **sizes)
    torch.manual_seed(0)
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["plain", "adapter", "sliding window", "common prefix"])
def test_answers_that_have_ended_leave_their_batch_and_the_others_are_the_same_as_alone(kind):
    tok = tiny_tokenizer()
    model = sliding() if kind == "sliding window" else tiny_model()
    if kind == "adapter":
        model = add_adapter(model, lora_config(model, r=2), seed=0)
    draw = torch.Generator().manual_seed(0)
    same = list(range(40, 60)) * 2 if kind == "common prefix" else []
    prompts = [same + torch.randint(len(tok), (3 + n,), generator=draw).tolist() for n in range(12)]
    ends = list(range(0, len(tok), 6))  # answers of many lengths
    core = model.get_base_model() if kind == "adapter" else model
    core.generation_config = GenerationConfig(eos_token_id=ends)
    rows: list[int] = []
    seen = core.get_input_embeddings().register_forward_hook(lambda layer, given, out: rows.append(len(out)))
    with greedy_decoding(model, tok):
        prefix = shared_prefix(model, prompts)
        assert (prefix is not None) == (kind == "common prefix")
        rows.clear()
        together = greedy_answers(model, tok, prompts, 30, prefix)
        computed = list(rows)
        alone = [greedy_answers(model, tok, [prompt], 30)[0] for prompt in prompts]
    seen.remove()
    longest = max(len(ids) + ended for ids, ended in alone)
    assert together == alone and len({len(ids) for ids, _ in alone}) > 3
    assert computed[0] == 12 and sorted(computed, reverse=True) == computed and computed[-1] <= 6
    assert len(computed) == longest


def test_a_model_with_another_state_than_keys_and_values_keeps_its_whole_batch():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Lfm2Config(vocab_size=64, layer_types=["conv", "full_attention"], **tiny)
    assert rows_can_leave(tiny_model()) and rows_can_leave(sliding())
    assert not rows_can_leave(Lfm2ForCausalLM(config))


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "8"])
def test_a_count_below_one_or_not_whole_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got {value!r}"):
        generate(tiny_model(), tiny_tokenizer(), ASK, **{"max_new_tokens": 1, name: value})


def test_a_thread_waits_until_another_has_generated_and_the_settings_stay_the_models(monkeypatch):
    model, tok, whole = tiny_model(), tiny_tokenizer(), LlamaForCausalLM.generate
    model.generation_config = own = GenerationConfig(do_sample=True, temperature=9.0, eos_token_id=[2])
    alone, entered, done = generate(model, tok, ASK, 8), threading.Event(), threading.Event()
    found = {}

    def second():
        with greedy_decoding(model, tok):
            entered.set()
            done.wait(10)
            found["config"] = model.generation_config

    def first(*args, **kwargs):
        thread.start()
        entered.wait(0.5)  # in which the other would come in
        return whole(*args, **kwargs)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(LlamaForCausalLM, "generate", first)
    assert generate(model, tok, ASK, 8) == alone
    done.set()
    thread.join()
    assert model.generation_config is own and not found["config"].do_sample


@pytest.mark.parametrize("chat", [[], (), "hi", None, {"messages": ASK[0]}, ASK[0][0]])
def test_what_is_no_list_of_messages_is_refused_with_its_number(chat):
    with pytest.raises(
        ValueError, match=r"conversation 1 must be a list of one message or more.*dataset\['messages'\]"
    ):
        generate(tiny_model(), tiny_tokenizer(), [ASK[0], chat], max_new_tokens=1)


@pytest.mark.parametrize(
    "message", ["hi", None, {"role": "user"}, {"content": "hi"}, {"role": "user", "content": None}]
)
def test_what_is_no_message_is_refused_with_both_numbers(message):
    with pytest.raises(ValueError, match=r'conversation 1, message 2 must be a dict with "role" and "content"'):
        generate(tiny_model(), tiny_tokenizer(), [ASK[0], [ASK[0][0], message, ASK[0][0]]], max_new_tokens=1)


def test_an_answer_that_only_calls_a_tool_is_a_message():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    tok = tiny_tokenizer()
    tok.chat_template = "{% for message in messages %}{{ message.content or '' }}<|im_end|>{% endfor %}"
    chat = [ASK[0][0], call, {"role": "tool", "content": "noon"}]
    assert tok.decode(encode_prompts(tiny_model(), tok, [chat], 1)[0]) == "a<|im_end|><|im_end|>noon<|im_end|>"


def test_an_error_shows_no_more_than_the_beginning_of_what_was_given():
    with pytest.raises(ValueError) as error:
        generate(tiny_model(), tiny_tokenizer(), ["x" * 10_000], max_new_tokens=1)
    assert len(str(error.value)) < 300


def test_a_conversation_may_be_a_tuple_of_messages():
    tok, model = tiny_tokenizer(), tiny_model()
    assert generate(model, tok, [tuple(ASK[0])], max_new_tokens=4) == generate(model, tok, ASK[:1], max_new_tokens=4)


def test_no_conversations_give_no_answers():
    assert generate(tiny_model(), tiny_tokenizer(), [], max_new_tokens=3) == []


def test_the_longest_conversations_go_first_in_batches_of_the_size_asked_for(monkeypatch):
    model, batches = tiny_model(), lengths(monkeypatch)
    chats = [[{"role": "user", "content": "x" * n}] for n in (3, 9, 1, 7, 5)]
    generate(model, tiny_tokenizer(), chats, max_new_tokens=1, batch_size=2)
    around = batches[-1][0] - 1
    assert [[n - around for n in batch] for batch in batches] == [[9, 7], [5, 3], [1]]


def test_a_tokenizer_that_adds_tokens_of_its_own_adds_none_to_what_the_template_wrote():
    tok, model = tiny_tokenizer(), tiny_model()
    expected = generate(model, tok, ASK, max_new_tokens=8)
    tok._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    assert tok("a").input_ids[0] == 1
    assert generate(model, tok, ASK, max_new_tokens=8) == expected


def test_a_second_stop_token_of_the_generation_config_ends_an_answer():
    tok, model = tiny_tokenizer(), tiny_model()
    free = generate(model, tok, ASK, max_new_tokens=12)
    stop = tok(free[0][3]).input_ids[0]
    for stops in (stop, [tok.eos_token_id, stop], [stop]):
        model.generation_config.eos_token_id = stops
        cut = generate(model, tok, ASK, max_new_tokens=12)
        word = tok.decode([stop])
        assert all(b == a.split(word)[0] for a, b in zip(free, cut) if word in a)
        assert len(cut[0]) < len(free[0])


def test_without_any_stop_token_an_answer_is_as_long_as_it_may_be():
    tok, model = tiny_tokenizer(), tiny_model()
    tok.eos_token = model.generation_config.eos_token_id = None
    tok.chat_template = tok.chat_template.replace("<|im_end|>", ".")
    assert all(len(ids_of(answer)) >= 12 for answer in generate(model, tok, ASK, max_new_tokens=12))


def test_the_tokenizers_own_end_of_turn_counts_where_the_model_names_another():
    tok, model = tiny_tokenizer(), tiny_model()
    free = generate(model, tok, ASK, max_new_tokens=12)
    tok.eos_token = tok.convert_ids_to_tokens(ids_of(free[0])[3])
    model.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    assert len(generate(model, tok, ASK, max_new_tokens=12)[0]) < len(free[0])


DISTURBING = {  # settings of a generation config, given the first two ids of an answer
    "do_sample": lambda ids: {"do_sample": True, "temperature": 2.0, "top_k": 5},
    "num_beams": lambda ids: {"num_beams": 3},
    "repetition_penalty": lambda ids: {"repetition_penalty": 3.0},
    "no_repeat_ngram_size": lambda ids: {"no_repeat_ngram_size": 1},
    "suppress_tokens": lambda ids: {"suppress_tokens": ids},
    "bad_words_ids": lambda ids: {"bad_words_ids": [[i] for i in ids]},
    "sequence_bias": lambda ids: {"sequence_bias": [[ids[:1], -50.0]]},
    "forced_eos_token_id": lambda ids: {"forced_eos_token_id": 5},
    "guidance_scale": lambda ids: {"guidance_scale": 3.0},
    "max_time": lambda ids: {"max_time": 1e-9},
    "stop_strings": lambda ids: {"stop_strings": ["a"]},
    "return_dict_in_generate": lambda ids: {"return_dict_in_generate": True},
    "num_return_sequences": lambda ids: {"num_return_sequences": 2},
}


@pytest.mark.parametrize("settings", DISTURBING.values(), ids=DISTURBING)
def test_nothing_in_a_models_own_generation_config_changes_what_it_says(settings):
    tok, model = tiny_tokenizer(), tiny_model()
    expected = generate(model, tok, ASK, max_new_tokens=8)
    for name, value in settings(ids_of(expected[0])[:2]).items():
        setattr(model.generation_config, name, value)
    assert generate(model, tok, ASK, max_new_tokens=8) == expected


def test_an_adapted_model_gets_its_bases_generation_config_back():
    base, tok = tiny_model(), tiny_tokenizer()
    expected = generate(base, tok, ASK, max_new_tokens=8)
    base.generation_config = own = GenerationConfig(suppress_tokens=ids_of(expected[0])[:2], eos_token_id=[2, 7])
    model = add_adapter(base, lora_config(base))
    assert generate(model, tok, ASK, max_new_tokens=8) == expected  # an adapter starts at zero
    assert model.generation_config is own and model.get_base_model().generation_config is own


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_config_are_restored_even_after_an_error(training, monkeypatch):
    model = tiny_model().train(training)
    own = model.generation_config
    generate(model, tiny_tokenizer(), ASK, max_new_tokens=1)
    assert model.training is training and model.generation_config is own
    monkeypatch.setattr(model, "generate", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, tiny_tokenizer(), ASK, max_new_tokens=1)
    assert model.training is training and model.generation_config is own


def test_dropout_is_off_while_a_model_in_training_answers():
    tok, model = tiny_tokenizer(), tiny_model()
    expected = generate(model, tok, ASK, max_new_tokens=8)
    adapted = add_adapter(model, lora_config(model, lora_dropout=0.5, init_lora_weights=False)).train()
    first = generate(adapted, tok, ASK, max_new_tokens=8)
    assert first == generate(adapted, tok, ASK, max_new_tokens=8) != expected
    assert adapted.training


def test_the_tools_of_a_conversation_are_in_its_prompt_as_they_are_in_training(monkeypatch):
    tok = tiny_tokenizer()
    tok.chat_template = (
        "{% if tools %}{{ 'tools: ' + tools[0].function.name + '<|im_end|>' }}{% endif %}" + tok.chat_template
    )
    tools = [{"type": "function", "function": {"name": "sum", "description": "adds", "parameters": {}}}]
    found = encode_prompts(tiny_model(), tok, ASK[:2], 1, [tools, None])
    answered = [*ASK[0], {"role": "assistant", "content": "b"}]
    trained = encode_chat(tok, answered, tools=tools)["input_ids"]
    assert tok.decode(found[0]).startswith("tools: sum<|im_end|>") and trained[: len(found[0])] == found[0]
    assert found[1] == encode_prompts(tiny_model(), tok, ASK[1:2], 1)[0]
    with pytest.raises(ValueError, match="tools has 1 entries for 2 conversations"):
        generate(tiny_model(), tok, ASK[:2], 1, tools=[tools])
    batches = lengths(monkeypatch)
    rows = Dataset.from_list([{"messages": answered, "tools": tools}, {"messages": answered, "tools": None}])
    evaluate(tiny_model(), tok, rows, {"exact_match": exact_match}, max_new_tokens=1)
    assert batches == [[len(found[0]), len(found[0]) - len(tok("tools: sum<|im_end|>").input_ids)]]


def test_conversations_may_come_from_a_generator():
    tok, model = tiny_tokenizer(), tiny_model()
    assert generate(model, tok, (chat for chat in ASK), max_new_tokens=4) == generate(model, tok, ASK, max_new_tokens=4)


def test_a_pad_token_that_also_ends_a_turn_changes_no_answer():
    tok, model = tiny_tokenizer(), tiny_model()
    expected = generate(model, tok, ASK, max_new_tokens=8)
    tok.pad_token = tok.eos_token
    assert generate(model, tok, ASK, max_new_tokens=8) == expected


@pytest.mark.smol
def test_a_prompt_is_what_training_saw_before_the_answer(real_model):
    tok = load_tokenizer(real_model)
    for earlier in ("Hi!", "\n\nstarts with lines", "  and spaces \n", "<|im_end|>"):
        said = [("user", "a"), ("assistant", earlier), ("user", "b")]
        chat = [{"role": role, "content": text} for role, text in said]
        row = encode_chat(tok, [*chat, {"role": "assistant", "content": "yes"}])
        prompt = encode_prompts(tiny_model(), tok, [chat], max_new_tokens=1)[0]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][len(prompt)] != IGNORE == row["labels"][len(prompt) - 1]


def taught(words="yo"):
    "A model that says these words and the token with which the template ends an answer, to whatever it is asked."
    tok, model = tiny_tokenizer(), tiny_model()
    rows = [encode_chat(tok, [*ask, {"role": "assistant", "content": words}]) for ask in ASK[:2]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for row in rows * 25:
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.whole
@pytest.mark.parametrize("eos", ["<|im_start|>", None])
def test_an_answer_ends_where_the_template_ends_it_though_tokenizer_and_model_name_other_tokens(eos):
    tok, model = tiny_tokenizer(), taught()
    tok.eos_token, model.generation_config.eos_token_id = eos, [7]
    assert answers(model, tok, ASK[:2], max_new_tokens=9) == [{"text": "yo", "tokens": 3, "ended": True}] * 2


@pytest.mark.whole
def test_an_end_token_that_the_tokenizer_does_not_call_special_is_no_part_of_an_answer():
    tok, model = tiny_tokenizer(), taught("yo!")
    tok.chat_template = tok.chat_template.replace("<|im_end|>", "")  # so that the template ends an answer with no token
    model.generation_config.eos_token_id = ids_of("!")[0]
    assert generate(model, tok, ASK[:2], max_new_tokens=9) == ["yo", "yo"]


def test_an_answer_that_is_cut_is_not_ended_even_where_another_in_its_batch_is():
    tok, model = tiny_tokenizer(), tiny_model()
    free = generate(model, tok, ASK, max_new_tokens=12)
    model.generation_config.eos_token_id = stop = ids_of(free[0])[3]
    found = answers(model, tok, ASK, max_new_tokens=12)
    assert [a["ended"] for a in found] == [stop in ids_of(text)[:12] for text in free]
    assert all(a["tokens"] == 12 for a in found if not a["ended"]) and found[0]["tokens"] <= 4 and found[0]["ended"]


LONG = [[{"role": "system", "content": "r" * 120}, {"role": "user", "content": "q" * n}] for n in (5, 1, 90, 7, 30, 2)]


@pytest.mark.parametrize("adapter", [False, True])
def test_what_all_prompts_share_is_computed_once_and_changes_no_answer(adapter):
    tok, model, computed = tiny_tokenizer(), tiny_model(), []
    if adapter:
        model = add_adapter(model, lora_config(model, init_lora_weights=False))
    alone = [answers(model, tok, [chat], max_new_tokens=6)[0] for chat in LONG]
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: computed.append(given[0].numel()))
    assert answers(model, tok, LONG, max_new_tokens=6, batch_size=3) == alone
    prompts = [tok.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in LONG]
    shared, own = len(os.path.commonprefix(prompts)), max(len(chat[1]["content"]) for chat in LONG)
    assert shared > 120 and sum(computed) < 2 * shared + 6 * own + 6 * 50  # whole prompts would be six times `shared`


def file_of(folder, model, **options):
    fixed = {"max_new_tokens": 5, "batch_size": 2}
    return answers(model, tiny_tokenizer(), LONG, file=folder / "answers.jsonl", **fixed | options)


@pytest.mark.whole
@pytest.mark.parametrize(("dtype", "torn"), [(torch.float32, 0), (torch.float32, 7), (torch.bfloat16, 80)])
def test_a_killed_evaluation_goes_on_where_it_was_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch, dtype, torn):
    model, asked = tiny_model().to(dtype), []
    one_batch = model.generate
    whole = file_of(tmp_path / "whole", model)

    def killed():
        def until(**given):
            asked.append(given)
            return os.kill(os.getpid(), signal.SIGKILL) if len(asked) == 3 else one_batch(**given)

        model.generate = until
        file_of(tmp_path, model)

    assert forked(killed) == -signal.SIGKILL
    file = tmp_path / "answers.jsonl"
    held = file.read_bytes()
    assert held.count(b"\n") == 5  # what made it, and two batches of two
    file.write_bytes(held[: len(held) - torn])  # as if the kill had come while they were written
    monkeypatch.setattr(model, "generate", lambda **given: asked.append(given) or one_batch(**given))
    assert file_of(tmp_path, model) == whole == file_of(tmp_path, model)
    assert len(asked) == (2 if torn else 1)
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert {line["row"]: line["answer"] for line in lines} == dict(enumerate(whole))


def test_a_file_of_other_prompts_models_or_settings_is_refused_and_left_as_it_is(tmp_path):
    file_of(tmp_path, tiny_model())
    held = (tmp_path / "answers.jsonl").read_bytes()
    for model, options, wrong in [
        (tiny_model(seed=1), {}, "weights was"),
        (tiny_model().bfloat16(), {}, "dtype was 'float32', is 'bfloat16'"),
        (tiny_model(), {"max_new_tokens": 6}, "max_new_tokens was 5, is 6"),
    ]:
        with pytest.raises(ValueError, match=f"{wrong}.*choose a new file"):
            file_of(tmp_path, model, **options)
    for chats in (LONG[:5], LONG[::-1]):
        with pytest.raises(ValueError, match="prompts was '6, .*, is '"):
            answers(tiny_model(), tiny_tokenizer(), chats, 5, file=tmp_path / "answers.jsonl")
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 7]
    with pytest.raises(ValueError, match=r"ends was \[2\], is \[2, 7\]"):
        file_of(tmp_path, model)
    assert (tmp_path / "answers.jsonl").read_bytes() == held


def test_the_size_of_a_batch_may_change_in_float32_and_in_no_other_precision(tmp_path):
    assert file_of(tmp_path / "a", tiny_model()) == file_of(tmp_path / "a", tiny_model(), batch_size=3)
    file_of(tmp_path / "b", tiny_model().bfloat16())
    with pytest.raises(ValueError, match="batch_size was 2, is 3"):
        file_of(tmp_path / "b", tiny_model().bfloat16(), batch_size=3)


def test_a_bad_conversation_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(ValueError, match="conversation 1 must be"):
        answers(tiny_model(), tiny_tokenizer(), [ASK[0], []], 5, file=tmp_path / "answers.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("progress", "given"), [(True, {}), (False, {"disable": True})])
def test_a_bar_is_switched_off_where_it_is_not_wanted_and_else_as_the_environment_says(progress, given, monkeypatch):
    from ft_notebooks.core.progress import progress_bar
    from ft_notebooks.inference import generation

    seen = []
    monkeypatch.setattr(generation, "progress_bar", lambda **kw: seen.append(kw) or progress_bar(**kw))
    generate(tiny_model(), tiny_tokenizer(), ASK, max_new_tokens=2, progress=progress)
    assert [{key: kw[key] for key in kw if key == "disable"} for kw in seen] == [
        given
    ]  # else TQDM_DISABLE=1 is overruled


@pytest.mark.parametrize("change", ["rows", "buffer", "config"])
def test_a_file_of_a_model_that_differs_in_any_way_is_refused(tmp_path, change):
    model = tiny_model()
    generate(model, tiny_tokenizer(), ASK, max_new_tokens=2, file=tmp_path / "a.jsonl")
    if change == "rows":
        model.get_input_embeddings().weight.data = model.get_input_embeddings().weight.data.flip(0)
    elif change == "buffer":
        model.model.rotary_emb.inv_freq *= 2
    else:
        model.config.rms_norm_eps *= 2
    with pytest.raises(ValueError, match="holds answers made with different settings: weights was"):
        generate(model, tiny_tokenizer(), ASK, max_new_tokens=2, file=tmp_path / "a.jsonl")


@pytest.mark.parametrize("make, kind", [(os.mkdir, "a folder"), (os.mkfifo, "a pipe")])
def test_a_file_that_can_hold_no_answers_is_refused(tmp_path, make, kind):
    make(tmp_path / "answers")
    with pytest.raises(ValueError, match=f"answers is {kind}.*name"):
        generate(tiny_model(), tiny_tokenizer(), ASK, max_new_tokens=2, file=tmp_path / "answers")


def test_weights_that_are_nan_are_an_error_and_no_answer():
    model = tiny_model()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(model, tiny_tokenizer(), ASK, max_new_tokens=2)
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize(
    "call", [lambda *given: generate(*given, 2), lambda model, tok, chats: row_losses(model, tok, ROWS)]
)
def test_a_token_that_the_model_has_no_row_for_is_named(call):
    model, tok = tiny_model(), tiny_tokenizer()
    tok.add_tokens([f"<new_{n}>" for n in range(model.config.vocab_size)])
    with pytest.raises(ValueError, match="the tokenizer produces ids up to .*<new_"):
        call(model, tok, ASK)
