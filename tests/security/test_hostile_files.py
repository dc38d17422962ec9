"""Files and answers that others made on purpose: nothing in them is executed, nothing is written outside the run's
folder, and nothing hangs.
"""

import html
import json
import math
import pickle
import re
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import adapted, trainer
from transformers import AutoModelForCausalLM

from ft_notebooks.checkpointing.integrity import checkpoint_fault, last_good_checkpoint, mark_checkpoint
from ft_notebooks.checkpointing.resume import exact_resume
from ft_notebooks.checkpointing.run_manifest import run_folder
from ft_notebooks.cli.commands import main
from ft_notebooks.course.judge import llm_judge, pairwise_judge
from ft_notebooks.evaluation.report import report_card
from ft_notebooks.evaluation.runner import Evaluation
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.sft.stage import SFTStage
from ft_notebooks.tokenization.chat_template import ChatTemplate
from ft_notebooks.tokenization.padding import load_tokenizer
from ft_notebooks.tokenization.rendering import write_chat

ASK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


class Payload:
    "A pickle that creates a file when it is read."

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def in_time():
    "A test that is not done after two minutes fails."

    def stop(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Pickles


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with a complete checkpoint after three of nine steps."
    folder = tmp_path_factory.mktemp("run")
    made = trainer(folder, model=adapted(), max_steps=3)
    exact_resume(made)
    made.train()
    return folder


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_no_pickle_of_a_checkpoint_is_executed(run, tmp_path, name):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoint, touched = folder / "checkpoint-3", tmp_path / "touched"
    (checkpoint / name).write_bytes(pickle.dumps(Payload(touched)))
    mark_checkpoint(checkpoint, 3)  # whoever made the folder has made its marker, too
    assert last_good_checkpoint(folder)
    again = trainer(folder, model=adapted(), max_steps=4)
    exact_resume(again)
    try:
        again.train(resume_from_checkpoint=str(checkpoint))
    except pickle.UnpicklingError as e:
        assert "Weights only load failed" in str(e)
    else:
        assert name == "training_args.bin"  # which is never read
    assert not touched.exists()


def test_no_pickle_in_a_models_folder_is_executed(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    payload, touched = pickle.dumps(Payload(tmp_path / "touched")), tmp_path / "touched"
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "tokenizer.pickle"):
        (tmp_path / name).write_bytes(payload)
    assert load_model(tmp_path, 32) and load_tokenizer(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickle"):
        load_model(tmp_path, 32)
    assert not touched.exists()


# Links, and names that lead elsewhere


def test_a_marker_that_names_files_outside_the_checkpoint_is_no_marker(run, tmp_path):
    checkpoint = shutil.copytree(run / "checkpoint-3", tmp_path / "checkpoint-3")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    marker = json.loads((checkpoint / "complete.json").read_text())
    for name in ("../outside.txt", str(outside)):
        files = {name: {"size": 4, "sha256": "82e7d6c5d9f8e7f7e6ff1fd0c1b9a5d5" * 2}}
        (checkpoint / "complete.json").write_text(json.dumps({**marker, "files": files}))
        assert "leads outside the checkpoint" in checkpoint_fault(checkpoint)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "checkpoint-1", "samples.jsonl"])
def test_a_run_does_not_write_through_a_link(tmp_path, name):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "file").write_text("mine")
    run_folder(folder, {"seed": 0})
    (folder / name).symlink_to(outside if name == "checkpoint-1" else outside / "file")
    with pytest.raises(ValueError, match=f"{name} is a link .*; remove the link"):
        run_folder(folder, {"seed": 0})
    assert (outside / "file").read_text() == "mine"


def test_no_rotation_deletes_what_a_link_leads_to(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    outside = shutil.copytree(run / "checkpoint-3", tmp_path / "outside")
    (folder / "checkpoint-1").symlink_to(outside)
    again = trainer(folder, model=adapted(), max_steps=4, save_steps=1, save_total_limit=1)
    exact_resume(again)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert (outside / "complete.json").is_file()


# The records of a run


@pytest.mark.whole
def test_a_record_runs_no_file_that_it_names(tmp_path, monkeypatch, capsys):
    "`ft eval RUN` of a run that another has made"
    monkeypatch.chdir(tmp_path)
    model, file = tmp_path / "run", tmp_path / "own.py"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    file.write_text("from pathlib import Path\nPath('touched').touch()\ndef f(a, b, c):\n    return 1.0\n")
    record = {"command": "grpo", "model.name": str(model), "model.bits": 32, "grpo.rewards": ["own.py:f"]}
    record["grpo.environment"] = "own.py:E"
    (model / "run.json").write_text(json.dumps(record))
    (model / "metrics.json").write_text(json.dumps({"data": {}, "system": None, "history": []}))
    Path("rows.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    main(["eval", "run", "rows.jsonl", "--set", "evaluation.max_new_tokens=2", "--output", "card"])
    assert "--score own.py:f" in capsys.readouterr().out
    assert not Path("touched").exists()


RECORDS = {
    "run.json": [
        {"command": "../../evil", "model.name": "model", "model.bits": 32},
        {"command": ["sft"], "model.name": {"a": 1}, "model.bits": "many"},
        {"command": "sft", "model.name": "/etc", "model.bits": 32},
        [1, 2],
    ],
    "metrics.json": [
        {"data": "../../etc/passwd", "system": 7, "history": {}},
        {"data": {}, "system": None, "history": {"../../x": 1}},
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RECORDS.items() for value in values])
@pytest.mark.parametrize("command", ["eval", "merge"])
def test_a_tampered_record_is_an_error_and_writes_nothing_elsewhere(
    tmp_path, monkeypatch, capsys, name, value, command
):
    inside = tmp_path / "inside"
    shutil.copytree(_model(tmp_path), inside / "run")
    monkeypatch.chdir(inside)
    good = {"command": "sft", "model.name": "run", "model.bits": 32, "data.held_out": "x", "data.trained": "y"}
    (inside / "run" / "run.json").write_text(json.dumps(good))
    (inside / "run" / "metrics.json").write_text(json.dumps({"data": {}, "system": None, "history": []}))
    (inside / "run" / name).write_text(json.dumps(value))
    before = sorted(p for p in tmp_path.rglob("*") if inside not in p.parents)
    Path("rows.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    more = ["rows.jsonl", "--set", "evaluation.max_new_tokens=2"] if command == "eval" else []
    with pytest.raises(SystemExit) as end:
        main([command, "run", *more])
    assert end.value.code == 2 and f"ft {command}: " in capsys.readouterr().err
    assert before == sorted(p for p in tmp_path.rglob("*") if inside not in p.parents)


DEEP = '{"a":' * 99_999
DAMAGED = [DEEP, "[]", ""]


@pytest.mark.parametrize("text", DAMAGED, ids=["deep", "list", "empty"])
@pytest.mark.parametrize("name", ["run.json", "metrics.json", "complete.json", "config.json", "generation_config.json",
                                  "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"])  # fmt: skip
def test_a_damaged_file_of_a_model_is_one_line_that_names_it(tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    _model(tmp_path)
    record = {"command": "sft", "model.name": "model", "model.bits": 32}
    Path("model/run.json").write_text(json.dumps(record))
    Path("model/metrics.json").write_text(json.dumps({"data": {}, "system": None, "history": []}))
    Path("model", name).write_text(text)
    Path("rows.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    if name == "generation_config.json" and text == "":
        pytest.skip("transformers goes without it")
    with pytest.raises(SystemExit) as end:
        main(["eval", "model", "rows.jsonl"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and name in said and "damaged" in said and "Traceback" not in said


# What a model's files ask of the libraries

FETCHING = [
    {"_attn_implementation": "owner/kernel"},
    {"attn_implementation": {"": "owner/kernel"}},
    {"attn_implementation": "flash_attention_2"},  # for which transformers fetches a kernel if flash-attn is missing
    {"text_config": {"_attn_implementation": "owner/kernel"}},
    {"experts_implementation": "sonicmoe"},
]


@pytest.mark.parametrize("fields", FETCHING, ids=str)
def test_no_kernel_that_a_config_names_is_fetched(tmp_path, monkeypatch, fields):
    folder = _model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))

    def fetch(*names, **_):
        raise AssertionError(f"{names} would be fetched")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", fetch)
    settings, tok = {"model": {"name": str(folder), "bits": 32, "method": "lora"}, "lora": {}}, tiny_tokenizer()
    for load in (load_model, lambda _: SFTStage(settings).load(None), lambda _: load_reward_model(folder, tok, seed=0)):
        with pytest.raises(ValueError, match="config.json: .*_implementation is .*; remove .* from the file"):
            load(folder)


def test_no_layer_is_replaced_by_a_kernel_of_the_hub(tmp_path, monkeypatch):
    folder, tok = _model(tmp_path), tiny_tokenizer()

    def replaced(*_, **__):
        raise AssertionError("compiled code of the hub would run")

    monkeypatch.setattr("transformers.modeling_utils.kernelize", replaced)
    with pytest.raises(AssertionError, match="compiled code"):
        AutoModelForCausalLM.from_pretrained(folder, use_kernels=True)
    settings = {"model": {"name": str(folder), "bits": 32, "method": "lora"}, "lora": {}}
    load_model(folder)
    SFTStage(settings).load(None)
    load_reward_model(folder, tok, seed=0).save_pretrained(tmp_path / "reward")
    load_reward_model(tmp_path / "reward", tok)


SIZES = [
    {"num_hidden_layers": 10**6}, {"num_labels": 10**9}, {"vocab_size": -5}, {"vocab_size": "many"}, {"dtype": "none"},
    {"num_attention_heads": 0}, {"pad_token_id": 10**9}, {"rms_norm_eps": math.nan}, {"hidden_act": "os.system"},
    {"quantization_config": {}},
]  # fmt: skip


@pytest.mark.parametrize("fields", SIZES, ids=str)
@pytest.mark.parametrize("load", ["load_model", "load_trainable"])
def test_a_value_that_no_model_has_is_an_error_that_names_the_model(in_time, tmp_path, fields, load):
    folder = _model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    settings = {"model": {"name": str(folder), "bits": 32, "method": "lora"}, "lora": {}}
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load_model(folder) if load == "load_model" else SFTStage(settings).load(None)


def test_a_config_of_many_megabytes_is_not_read(tmp_path):
    folder = _model(tmp_path)
    with (folder / "config.json").open("ab") as file:
        file.truncate(5 * 10**8)
    with pytest.raises(ValueError, match="config.json has 500,000,000 bytes"):
        load_model(folder)


@pytest.mark.parametrize("place", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_an_index_leads_to_no_file_elsewhere(tmp_path, place):
    folder = _model(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    with pytest.raises(ValueError, match="index.json does not map weights to files|lacks 1 of its 1 files"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_whole_numbers_bits_and_bytes_are_no_weights(tmp_path, dtype):
    folder, adapter = _model(tmp_path), _adapter(tmp_path)
    for file in (folder / "model.safetensors", adapter / "adapter_model.safetensors"):
        tensors = load_file(file)
        first = next(iter(tensors))
        save_file({**tensors, first: tensors[first].to(dtype)}, file)
    for load in (load_model, lambda _: load_adapter(adapter)):
        with pytest.raises(ValueError, match="weight holds numbers of the type"):
            load(folder)


def short(fields):
    return str(fields)[:50]


ADAPTERS = {
    "alpha": [{"lora_alpha": value} for value in (math.nan, 0, 1e30, "8", None)],
    "pattern of alpha": [{"alpha_pattern": {"q_proj": value}} for value in (math.nan, 1e30)],
    "regular expression": [
        {"target_modules": r"(\w+\.?)+!"}, {"target_modules": "(.*.*)*x"}, {"exclude_modules": r"(\w+\.?)+!"},
        {"rank_pattern": {r"(\w+\.?)+!": 4}}, {"target_modules": "[unclosed"}, {"rank_pattern": {"(": 8}},
    ],
    "shape": [{"r": 10**9}, {"r": 0}, {"r": "4"}, {"r": 4.0}, {"layer_replication": [[0, 2]] * 10**5}],
    "further models": [{"peft_type": "XLORA", "adapters": {"a": "owner/a"}},
                       {"peft_type": "SHADOW", "shadow_model": "owner/a"}, {"megatron_config": {"a": 1}}],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("fields", [fields for kind in ADAPTERS.values() for fields in kind], ids=short)
def test_a_hostile_adapter_is_an_error_before_its_base_is_loaded(in_time, tmp_path, monkeypatch, fields):
    monkeypatch.setattr("ft_notebooks.lora.adapter_folder.LONGEST_CHECK", 0.1)
    monkeypatch.setattr("ft_notebooks.lora.adapter.load_model", None)
    _model(tmp_path)
    folder = _adapter(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match=f"{folder} does not fit its base"):
        load_adapter(folder)


@pytest.mark.parametrize("fields", [{"target_modules": r"(\w+\.?)+!"}, *ADAPTERS["alpha"][:3]], ids=short)
def test_a_hostile_setting_of_lora_is_an_error(in_time, monkeypatch, fields):
    monkeypatch.setattr("ft_notebooks.lora.targets.LONGEST_CHECK", 0.1)
    with pytest.raises(ValueError, match="takes more than 0.1 seconds|lora_alpha=.* are usual"):
        lora_config(tiny_model(), **fields)


def test_an_adapter_that_is_nan_is_not_loaded(tmp_path):
    _model(tmp_path)
    file = _adapter(tmp_path) / "adapter_model.safetensors"
    save_file({name: tensor * math.nan for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="NaN or infinite: .*lora_A"):
        load_adapter(file.parent)


def _adapter(folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    add_adapter(model, lora_config(model, r=4)).save_pretrained(folder / "adapter")
    return folder / "adapter"


def _model(folder: Path) -> Path:
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


# What a model or a judge writes

ATTACKS = [
    "[click](javascript:alert(1))", "![x](javascript:alert(1))", "<javascript:alert(1)>", "[x]: javascript:alert(1)",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a | b\n| c |\n\n# title\n```js\nalert(1)",
    "</pre></section><iframe srcdoc='x'>", "&lt;script&gt;", "{{ 7 * 7 }}{% for x in range(10**9) %}{% endfor %}",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred", "\u202etxt.exe", "\u2028<b>\u2029", "\\[x](javascript:alert(1))",
]  # fmt: skip


def test_a_report_shows_answers_and_stages_as_text(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": text}], "expected": text, "generated": text, "exact_match": 1.0}
        for text in ATTACKS
    ]
    score = {"exact_match": {"value": 1.0, "low": 0.8, "high": 1.0, "n": len(rows)}}
    name = "[sft](javascript:alert(1))<script>"
    page = report_card({name: Evaluation(score, rows)}, tmp_path / "card", title=ATTACKS[0], samples=len(rows))
    text, markdown = page.read_text(), (tmp_path / "card" / "report.md").read_text()
    tags = {*re.findall(r"<([a-z0-9]+)[ >]", text)}
    assert not tags & {"script", "iframe", "a", "object", "form", "b"} - {"b"} and "default-src 'none'" in text
    assert "onerror=" not in re.sub(r"onerror=alert\(1\)&gt;", "", text)
    unescaped = re.sub(r"\\.", "", markdown)
    assert not re.findall(r"\]\(javascript|<(?!br>)[a-z/!]|\]:", unescaped)
    words = re.sub(r'"data:image[^"]*"', "", html.unescape(text))  # figures are letters and digits by chance
    assert "49" not in words.replace("{{ 7 * 7 }}", "")
    assert [p.name for p in tmp_path.iterdir()] == ["card"]


REPLIES = ["", "\n" * 50_000, "grade " * 20_000, "!" * 100_000, "final " * 20_000 + "9", "9" * 50_000, "9/" * 20_000,
           "__import__('os').system('touch touched')", "9\x1b]0;\x07", "A" * 9**5, "verdict_" * 9999]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_a_hostile_judge_gives_a_grade_or_an_error(in_time, tmp_path, monkeypatch, reply):
    monkeypatch.chdir(tmp_path)
    row = {"messages": ASK}
    for judge in (llm_judge("Is it right?", lambda system, user: reply), pairwise_judge("?", lambda s, u: reply)):
        try:
            assert 0 <= judge("an answer", "another", row) <= 1
        except ValueError as e:
            assert "\x1b" not in str(e) and len(str(e)) < 400
    assert not [*tmp_path.iterdir()]


LOOPS = {
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x<|im_end|>",
    "long": "{% for a in range(10**9) %}{{ a }}{% endfor %}",
    "huge": "{{ 'x' * 100000000000000 }}",
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("template", LOOPS.values(), ids=LOOPS)
def test_a_template_that_loops_is_an_error(in_time, tmp_path, monkeypatch, template):
    monkeypatch.setattr("ft_notebooks.tokenization.rendering._LONGEST_RENDERING", 0.1)
    tok = tiny_tokenizer()
    tok.chat_template = template
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(tok).render(ASK)
    tok.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the chat template"):
        load_tokenizer(str(tmp_path))


GROWS = {
    "times": "{{ 'a' * 3000000000 }}",
    "times of what is read": "{% for m in messages %}{% set x = m.content * 1000000000 %}{% endfor %}",
    "list": "{{ [1] * 1000000000 }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "filter format": "{{ '%1000000000s' | format('a') }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'a' * 1000000) }}",
    "indent": "{{ ('a\n' * 50000) | indent(10000) }}",
    "join": "{{ (['a' * 100000] * 100000) | join }}",
    "doubled": "{% set n = namespace(x='aaaa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 100000 }}{% endfor %}{% endfor %}",
    "macro": "{% macro f() %}{{ 'x' * 9999999 }}{% endmacro %}{% for a in range(99) %}{{ f() }}{% endfor %}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize("template", GROWS.values(), ids=GROWS)
def test_a_template_that_asks_for_memory_is_an_error_before_it_has_it(in_time, monkeypatch, template):
    monkeypatch.setattr("ft_notebooks.tokenization.rendering._MOST_MEMORY", 10**8)
    tok, limit = tiny_tokenizer(), resource.getrlimit(resource.RLIMIT_AS)
    write_chat(tok, ASK)
    with pytest.raises(ValueError, match="takes more than 100 MB"):
        write_chat(tok, ASK, chat_template=template)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_threads_that_render_at_once_leave_the_memory_of_the_process_unlimited():
    tok, limit = tiny_tokenizer(), resource.getrlimit(resource.RLIMIT_AS)
    threads = [threading.Thread(target=lambda: [write_chat(tok, ASK) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


POWERS = ["{{ 10**10**10 }}", "{{ 'a'*3*10**10 }}", "{{ 10 ** messages|length }}", "{{ 1.5 | round(9**9, 'ceil') }}"]


@pytest.mark.parametrize("template", POWERS)
def test_a_template_that_computes_a_power_is_not_run(in_time, template):
    "for Python handles no signal, and so no limit of time, before the power is computed"
    with pytest.raises(ValueError, match="computes a power"):
        write_chat(tiny_tokenizer(), ASK, chat_template=template)


def test_a_template_reaches_neither_files_nor_python(tmp_path):
    tok = tiny_tokenizer()
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ):
        tok.chat_template = attack
        with pytest.raises(ValueError, match="the chat template cannot write"):
            ChatTemplate(tok).render(ASK)


assert torch
