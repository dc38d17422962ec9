"Distillation: killed runs, two processes, the share of own answers, and what fails silently in TRL."

import contextlib
import copy
import io
import json
import signal

import datasets
import pytest
import torch
from ranks_of import ranks
from small_runs import ROUNDED, killed_at, only_rounded

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.distillation import distill_trainer
from ft_notebooks.rlhf.teachers import load_teacher
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole

TOK = tiny_tokenizer()
WORDS = "apple bridge candle dolphin engine forest garden hammer".split()
CHATS = [{"messages": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": w}]} for w in WORDS]
ASKED = [{"prompt": row["messages"][:1]} for row in CHATS]
FIXED = {
    "bf16": False, "disable_tqdm": True, "save_steps": 2, "max_steps": 5, "learning_rate": 1e-3,
    "effective_batch": 4, "max_completion_length": 12,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def student(kind):
    if kind == "full":
        return tiny_model()
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.3, init_lora_weights=False))


def trained(folder, kind="full", **given):
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = distill_trainer(
            student(kind), TOK, CHATS, tiny_model(seed=1), output_dir=str(folder),
            **FIXED | given,
        )  # fmt: skip
        fit(trainer)
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logs(trainer):
    keys = ("loss", "grad_norm", "entropy", "completions/mean_length")
    return [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    half = {"lmbda": 0.5, "max_steps": 4}
    whole = trained(tmp_path / "whole", "adapter", **half)
    assert killed_at(3, lambda: trained(tmp_path / "parts", "adapter", **half)) == -signal.SIGKILL
    assert last_good_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    parts = trained(tmp_path / "parts", "adapter", **half)
    assert torch.equal(weights(whole), weights(parts)) and logs(whole) == logs(parts) and len(logs(whole)) == 4


def learned(folder):
    trainer = trained(folder, max_steps=4, lmbda=0.5)
    return {"weights": weights(trainer), "logs": torch.tensor(logs(trainer))}


def test_two_processes_sample_and_learn_what_one_does(tmp_path):
    one = learned(tmp_path / "one")
    two = ranks(2, lambda rank: learned(tmp_path / "two"), tmp_path / "ranks")
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert torch.equal(two[0]["logs"][:, 3], one["logs"][:, 3])  # lengths of the answers
    assert (two[0]["logs"][:, 0] - one["logs"][:, 0]).abs().max() < ROUNDED * one["logs"][:, 0].max()
    assert only_rounded((two[0]["weights"] - one["weights"]).abs(), 2 * 1e-3 * 4)


def test_an_evaluation_during_the_run_changes_no_weight(tmp_path):
    looks = {"eval_dataset": CHATS[:4], "eval_strategy": "steps", "eval_steps": 2}
    plain = trained(tmp_path / "plain", max_steps=3)
    looked = trained(tmp_path / "looked", max_steps=3, **looks)
    assert torch.equal(weights(plain), weights(looked))
    assert sum("eval_loss" in entry for entry in looked.state.log_history) == 2  # and at the end


def test_a_student_in_four_bits_learns_from_its_own_weights_before_rounding(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    TOK.save_pretrained(tmp_path / "tiny")
    base = load_model(tmp_path / "tiny", bits=4)
    rounded = add_adapter(base, lora_config(base, r=8))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer = distill_trainer(
            rounded, TOK, CHATS, str(tmp_path / "tiny"), output_dir=str(tmp_path / "run"), **FIXED | {"max_steps": 8}
        )
        fit(trainer)
    found = [row[0] for row in logs(trainer)]
    assert "nats a token from the teacher's" in said.getvalue()
    assert 0 < found[-1] and sum(found[-3:]) < sum(found[:3])


# what ends without an error in TRL


def refused(folder, rows=CHATS, teacher=None, model=None, **given):
    with pytest.raises(ValueError) as e, contextlib.redirect_stdout(io.StringIO()):
        model = tiny_model() if model is None else model
        distill_trainer(model, TOK, rows, teacher or tiny_model(seed=1), output_dir=str(folder), **FIXED | given)
    return str(e.value)


def saved(folder, tok, model=None):
    (model or tiny_model(seed=1)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def test_a_teacher_whose_ids_are_other_tokens_is_refused_by_the_first(tmp_path):
    tok = tiny_tokenizer()
    vocabulary = tok.get_vocab()
    file = tmp_path / "teacher" / "tokenizer.json"
    place = saved(tmp_path / "teacher", tok)
    a, b = (next(token for token, i in vocabulary.items() if i == id) for id in (70, 71))
    known = json.loads(file.read_text())
    vocab = known["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    file.write_text(json.dumps(known))
    assert f"id 70 is {a!r} for the student and {b!r} for the teacher" in refused(tmp_path / "run", teacher=place)


def test_a_teacher_that_reads_prompts_in_another_template_is_refused(tmp_path):
    tok = tiny_tokenizer()
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    said = refused(tmp_path / "run", teacher=saved(tmp_path / "teacher", tok))
    assert "the student's template writes" in said and "tok.chat_template = teacher_tok.chat_template" in said


def test_the_base_of_a_run_as_its_own_teacher_is_refused(tmp_path):
    fresh = add_adapter(tiny_model(), lora_config(tiny_model(), r=4))
    said = refused(tmp_path / "run", teacher=tiny_model(), model=fresh)
    assert "teacher and student say the same of 4 answers" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lmbda": -0.1}, "lmbda=-0.1 is the share of rows"),
        ({"rows": ASKED, "lmbda": 0.5}, "row 0 (counted from 0) has no answer"),
        ({"effective_batch": 9}, "8 rows are fewer than effective_batch=9"),
        ({"top_p": 0.9}, "top_p=0.9 samples answers from a changed distribution"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_completion_length": 2}, "max_completion_length=2 would cut answers like those of the rows"),
        ({"use_vllm": True}, "use_vllm"),
        ({"teacher_model_name_or_path": "x"}, "give teacher, the fourth argument"),
        ({"beta": 2.0}, "beta=2.0"),
        ({"lmda": 0.5}, "'lmda' is neither a field of DistillationConfig"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, given, said):
    assert said in refused(tmp_path / "run", **given)


# what is no failure


def test_a_teacher_with_rows_of_the_head_that_no_token_has_teaches(tmp_path):
    wide = tiny_model(seed=1)
    plain = trained(tmp_path / "plain", max_steps=1)
    wide.resize_token_embeddings(wide.config.vocab_size + 64, mean_resizing=False)
    teacher = load_teacher(saved(tmp_path / "wide", TOK, wide), TOK, bits=32)  # as the plain one, on every processor
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = distill_trainer(
            tiny_model(), TOK, CHATS, teacher, output_dir=str(tmp_path / "run"), **FIXED | {"max_steps": 1}
        )
        fit(trainer)
    assert torch.equal(weights(plain), weights(trainer))


def test_prompts_without_answers_and_a_teacher_of_another_shape_teach(tmp_path):
    teacher = tiny_model(seed=1)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = 1
    deep = type(teacher)(config)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = distill_trainer(
            tiny_model(), TOK, ASKED, deep, output_dir=str(tmp_path / "run"), **FIXED | {"max_steps": 1}
        )
        fit(trainer)
    assert len(logs(trainer)) == 1
