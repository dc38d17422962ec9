"The doctor on one run, broken in one place at a time, and changed where nothing breaks."

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.doctor import doctor_command
from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.doctor.diagnosis import checks, diagnose
from ft_notebooks.doctor.findings import KINDS, LEVELS
from ft_notebooks.loading.example_models import CHATML, tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[2]
CPU = {"use_cpu": True, "bf16": False, "fp16": False, "learning_rate": 1e-2, "max_steps": 12, "effective_batch": 4}
NOTES, TEST = appointments(40), appointments(24, part="test")
UNREAD = [{**row, "context": f"The calendar of room {n} is kept here."} for n, row in enumerate(NOTES)]


def each(change):
    "The rows with `change` applied to each conversation."

    def rows():
        found = NOTES.to_list()
        for n, row in enumerate(found):
            change(row["messages"], n)
        return found

    return rows


def answers(text):
    return each(lambda chat, n: chat[-1].update(content=text(chat, n)))


def template(old, new=""):
    assert old in CHATML
    return {"chat_template": CHATML.replace(old, new)}


def found(rows=NOTES, held=TEST, tok={}, model=None, quick=True, **settings):
    given = tiny_tokenizer()
    given.chat_template = tok.get("chat_template", given.chat_template)
    rows = rows() if callable(rows) else rows
    return diagnose(model or tiny_model(), given, rows, held, quick=quick, **{**CPU, **settings})


def serious(findings):
    return {one.code for one in findings if one.level != "note"}


CONTENT = "message['content']"
BROKEN = {
    "rows-not-encoded": [
        {"tok": template(CONTENT, f"({CONTENT} | upper)")},
        {"tok": template("for message in messages", "for message in messages if message['role'] != 'system'")},
        {"rows": each(lambda chat, n: chat[-1].update(reasoning_content=f"I look at the note {n}."))},
        {"tok": template("{% for", "{{ raise_exception('no') if messages[0].role == 'system' }}{% for")},
    ],
    "template-changes": [
        {"tok": template("{% if add", "{{ [1, 2, 3] | random }}{% if add")},
        {"tok": template("{% if add", "{% if strftime_now is defined %}{{ strftime_now('%H') }}{% endif %}{% if add")},
    ],
    "prompt-differs": [
        {"tok": template("{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")},
        {"tok": template("'<|im_start|>assistant\n'", "'<|im_start|>model\n'")},
    ],
    "rows-repeat": [{"rows": NOTES.to_list()[:10] * 4}],
    "answers-repeat": [{"rows": answers(lambda chat, n: "Noted." if n else "It is noted.")}],
    "answers-misplaced": [{"rows": each(lambda chat, n: chat[-1].update(NOTES[(n + 1) % 40]["messages"][-1]))}],
    "answers-cut": [
        {"rows": answers(lambda chat, n: f"{NOTES[39 - n]['messages'][1]['content']}"[: 60 - 9 * (n % 9 < 1)])}
    ],
    "answer-copied": [{"rows": answers(lambda chat, n: f"{chat[-2]['content']} {chat[-1]['content']}")}],
    "held-out-trained": [{"held": NOTES.select(range(8))}, {"held": [TEST[0]] * 20}],
    "rows-unreadable": [{"rows": [*NOTES.to_list(), {"messages": []}]}, {"rows": Path("nowhere.jsonl")}],
    "column-unread": [{"rows": UNREAD}],
    "context-exceeded": [{"rows": each(lambda chat, n: n == 5 and chat[1].update(content="word " * 500))}],
    "setting-extreme": [{"adam_beta1": 0.99999, "label_smoothing_factor": 0.9, "neftune_noise_alpha": 1e5}],
    "rate-never-reached": [{"warmup_steps": 40}],
    "folder-unusable": [{"output_dir": str(Path(__file__) / "run")}, {"output_dir": str(Path(__file__).parent)}],
}


@pytest.mark.parametrize(("code", "given"), [(code, one) for code, cases in BROKEN.items() for one in cases])
def test_a_run_with_one_broken_property_has_this_finding_and_no_other(code, given):
    others = {"answers-repeat", "answers-misplaced", "rows-not-encoded", "answers-cut"} - {code}
    others |= {"values-not-copied", "answers-unfit"}
    others |= {"held-out-differs"}  # the held-out rows are whole
    assert code in (codes := serious(found(**{"held": None, **given}))) and not codes - {code} - others, codes


def test_texts_with_five_faults_have_two_codes_and_five_messages():
    odd = [
        lambda text, n: f"User: {n}?\nAssistant: {n}.", lambda text, n: f"<start_of_turn>{text}",
        lambda text, n: f"Müller {n}: naïve".encode().decode("cp1252"), lambda text, n: rf"One {n}.\n\nTwo",
        lambda text, n: f"\u202e{text}",
    ]  # fmt: skip
    said = found(answers(lambda chat, n: odd[n % 5](chat[-1]["content"], n)))
    damage = [one.rows for one in said if one.code == "texts-damaged"]
    leftovers = [one.rows for one in said if one.code == "texts-leftover"]
    assert [rows[:2] for rows in damage] == [(2, 7), (3, 8), (4, 9)], damage
    assert [rows[:2] for rows in leftovers] == [(0, 5), (1, 6)], leftovers
    assert serious(said) - {"texts-damaged", "texts-leftover"} <= {
        "answers-misplaced",
        "rows-not-encoded",
        "held-out-differs",
    }


# fmt: off
# ruff: noqa: E501 (the table has a line for each)
BENIGN = {
    "a system message less": {"rows": each(lambda chat, n: chat[0]["role"] == "system" and chat.pop(0)), "held": None},
    "emoji, right to left, CJK": {"rows": answers(lambda chat, n: f"好的 {n} 👩‍💻 שלום\u200f {chat[-1]['content']}"), "held": None},
    "short answers": {"rows": answers(lambda chat, n: ["yes", "no"][n % 3 > 0]), "held": None},
    "ten turns": {"rows": [{"messages": [m for chat in NOTES["messages"][n : n + 5] for m in chat[-2:]]} for n in range(0, 40, 5)] * 1},
    "one copy": {"rows": [*NOTES.to_list(), NOTES[0]]},
    "a template that trims": {"tok": template(CONTENT, f"({CONTENT} | trim)")},
    "no generation prompt, and none needed": {"tok": {"chat_template":
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% else %}"
        "{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}"}},
    "code, mathematics, HTML": {"rows": answers(lambda chat, n: rf"`print('\n')` $\nabla_{{{n}}}$ <b>a &lt; b</b>" if n < 4 else chat[-1]["content"])},
    "columns of one's own": {"rows": [{**row, "id": n, "source": "the calendar of the town"} for n, row in enumerate(NOTES)]},
    "usual settings": {"warmup_ratio": 0.1, "weight_decay": 0.1, "adam_beta2": 0.95, "lora": {"r": 64, "lora_dropout": 0.1}},
}
# fmt: on


@pytest.mark.parametrize("given", BENIGN.values(), ids=BENIGN)
def test_what_breaks_nothing_is_not_found(given):
    assert serious(found(**given)) == set()


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model()))


def damaged():
    model = tiny_model()
    model.model.norm.weight.data[3] = torch.inf
    return model


def frozen_in_part(model):
    model.get_decoder().layers[1].register_forward_pre_hook(lambda layer, args: (args[0].detach(), *args[1:]))
    return model


def both_train(model):
    model.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    return model


def test_an_adapter_on_a_base_that_was_changed_in_memory(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = load_model(tmp_path, bits=32)
    model.model.layers[1].mlp.up_proj.weight.data *= 1.5
    model = add_adapter(model, lora_config(model))
    assert serious(found(model=model, quick=False)) - {"model-mismatched"} == {"step-fails"}


@pytest.mark.parametrize(
    ("make", "settings", "codes"),
    [
        (adapted, {}, set()),  # an adapter on random weights is a finding of its own, which others have too
        (lambda: adapted().requires_grad_(False), {}, {"step-fails"}),
        (lambda: frozen_in_part(adapted()), {}, {"step-fails"}),
        (lambda: both_train(adapted()), {}, {"model-unusable"}),
        (damaged, {}, {"weights-damaged"}),
        (adapted, {"learning_rate": 1e-8}, {"hardly-learns"}),
        (tiny_model, {"learning_rate": 0.04}, {"rate-too-high"}),
    ],
)
def test_model_and_first_steps(make, settings, codes):
    assert serious(found(model=make(), quick=False, **settings)) - {"model-mismatched"} == codes


def test_a_scripts_own_optimizer_and_encoded_rows_raise_nothing_where_they_are_right():
    model = tiny_model()
    own = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = encode_chats(tiny_tokenizer(), NOTES)[0]
    held = encode_chats(tiny_tokenizer(), TEST)[0]
    before = [p.detach().clone() for p in model.parameters()]
    assert serious(found(rows, held, model=model, quick=False, optimizers=(own, None))) == set()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before)) and not own.state
    asleep = torch.optim.lr_scheduler.LambdaLR(own, lambda step: 0.0)
    assert "rate-never-reached" in serious(found(rows, rows, model=model, optimizers=(own, asleep)))


@pytest.mark.parametrize("stage", ["dpo"])
def test_pairs_are_looked_at_too(stage):
    pairs = demo_pairs(40, 0)
    scored = [{**row, "score_chosen": n % 4, "score_rejected": 2} for n, row in enumerate(pairs)]
    given = {"stage": stage, "model": adapted(), "quick": False, "learning_rate": 2e-4}
    asked = {"feature-decides"}  # a question: the order of the keys is all that these pairs prefer
    odd = serious(found(pairs, demo_pairs(20, 7), **given))
    assert odd - asked == {"model-mismatched"}  # an adapter on random weights
    assert serious(found(scored, demo_pairs(20, 7), **{**given, "quick": True})) - asked == {"scores-contradict"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    NOTES.to_json(folder / "notes.jsonl")
    prompts = [{"prompt": chat[:-1], "expected": chat[-1]["content"]} for chat in NOTES["messages"]]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return folder


def doctor(folder, data, *words):
    "The object that `ft doctor --json` prints, and its exit code."
    line = ["doctor", str(folder / data), "--set", f"model.name={folder / 'tiny'}", "--set", "data.eval=0.1", "--json"]
    args, out, code = parser().parse_args([*line, "--output", str(folder / "run"), *words]), io.StringIO(), 0
    args.threads = None
    with contextlib.redirect_stdout(out):
        try:
            doctor_command(args)
        except SystemExit as e:
            code = e.code
    return json.loads(out.getvalue()), code


def test_the_command_prints_one_object_says_by_its_exit_code_what_it_found_and_leaves_nothing(folder):
    before = sorted(folder.rglob("*"))
    settings = ["sft.bf16=false", "sft.use_cpu=true", "sft.learning_rate=1e-2", "model.bits=32", "model.method=full"]
    said, code = doctor(folder, "notes.jsonl", *(word for one in settings for word in ("--set", one)))
    assert code == 0 and {one["level"] for one in said["findings"]} <= {"note"}, said
    said, code = doctor(folder, "notes.jsonl", "--quick", "--set", "sft.lerning_rate=1", "--set", "sft.weight_decay=7")
    assert code == 1 and {"setting-invalid", "setting-extreme"} <= {one["code"] for one in said["findings"]}
    assert all(set(one) == {"code", "level", "message", "where", "cure", "notebook"} for one in said["findings"])
    assert sorted(folder.rglob("*")) == before


def test_prompts_are_for_reinforcement_learning(folder):
    said, code = doctor(folder, "prompts.jsonl", "--quick", "--reward", "exact_match")
    assert code == 0, said


def test_a_share_of_the_pairs_is_one_of_those_that_would_be_trained(folder):
    pairs = demo_pairs(30, 0)
    pairs = [{**row, "rejected": row["chosen"]} if n < 5 else row for n, row in enumerate(pairs)]
    (folder / "equal.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    settings = ("--stage", "dpo", "--quick", "--set", "data.eval=last:10", "--set", "data.allow_equal=0.2")
    said, code = doctor(folder, "equal.jsonl", *settings)
    whole, _ = doctor(folder, "equal.jsonl", "--stage", "dpo", "--quick", "--set", "data.eval=last:100")
    (folder / "equal.jsonl").unlink()
    assert {"held-out-unusable", "rows-not-encoded"} <= {one["code"] for one in whole["findings"]}, whole
    assert (
        code == 1 and "5 of 20 pairs have two equal answers" in str(said) and "--set data.allow_equal=0.25" in str(said)
    )


def always(generated, expected, example):
    return 1.0


def test_a_script_gives_prompts_and_its_reward():
    prompts = [{"prompt": chat[:-1], "expected": chat[-1]["content"]} for chat in NOTES["messages"]]
    given = {"held": None, "stage": "grpo", "learning_rate": 1e-5}
    for rows in (prompts, Dataset.from_list(prompts), NOTES):
        assert serious(found(rows, rewards="exact_match", **given)) == set()
    assert serious(found(prompts, rewards=always, **given)) == {"reward-flat"}


def test_the_folder_of_a_model_is_enough(folder):
    given = {**CPU, "stage": "reward", "learning_rate": 1e-3}
    codes = {one.code for one in diagnose(str(folder / "tiny"), None, demo_pairs(24, 0), **given)}
    assert not codes & {"could-not-look", "model-unusable", "step-fails"}, codes


def test_a_model_that_is_not_there_is_one_finding(folder):
    said, code = doctor(folder, "notes.jsonl", "--set", "model.name=none_such")
    assert code == 1 and [one["code"] for one in said["findings"] if one["level"] == "error"] == ["model-not-found"]


def test_a_check_that_fails_is_said_and_ends_with_exit_code_2(folder, monkeypatch):
    monkeypatch.setattr("ft_notebooks.doctor.row_checks.text_of", lambda value: 1 / 0)
    said, code = doctor(folder, "notes.jsonl", "--quick")
    assert code == 2 and "ZeroDivisionError" in str(said)


def test_each_check_says_what_it_is_for():
    for one in checks():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", one.code) and (ROOT / one.notebook).is_file(), one.code
        assert all((one.symptom, one.cause, one.cure)) or one.level == "note", one.code
        assert one.level in LEVELS and set(one.rows) <= set(KINDS), one.code


def test_encoded_rows_are_compared_by_what_is_trained_of_them():
    rows = encode_chats(tiny_tokenizer(), NOTES)[0]
    held = rows.add_column("id", list(range(len(rows))))
    assert "held-out-trained" in serious(found(rows, held))
    assert "held-out-trained" not in serious(found(rows, encode_chats(tiny_tokenizer(), TEST)[0]))
    for train, other in ((rows, held), (NOTES, held), (rows, TEST)):  # of tokens and texts nothing is compared
        assert "could-not-look" not in serious(found(train, other))


def test_tokens_beyond_the_model_are_one_error():
    tok = tiny_tokenizer()
    tok.add_tokens(["<tool_call>"])
    found = diagnose(tiny_model(), tok, NOTES)
    assert serious(found) == {"tokenizer-unusable"}, found


def test_rows_whose_answers_are_tool_calls_alone_are_looked_at():
    call = {"function": {"name": "add", "arguments": "{}"}, "type": "function"}
    rows = each(lambda chat, n: chat[-1].update(content=None, tool_calls=[call]))
    found = diagnose(tiny_model(), tiny_tokenizer(), rows() if callable(rows) else rows, quick=True)
    assert not {"could-not-look", "answers-conflict"} & {one.code for one in found}, found
