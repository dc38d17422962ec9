"""Tasks of lm-evaluation-harness from local files: edges of the names, of the rows and of the scores; offline."""

import functools
import json
import math
import sys

import pytest
import yaml
from torch.utils import collect_env

pytest.importorskip("lm_eval", reason="needs pip install 'ft-notebooks[eval]'")

from ft_notebooks.evaluation.lm_eval import _score, run_tasks  # noqa: E402
from ft_notebooks.evaluation.runner import interval  # noqa: E402
from ft_notebooks.inference.generation import generate  # noqa: E402
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer  # noqa: E402

pytestmark = pytest.mark.whole

SUMS = [(a, a + 4, a % 3) for a in range(6)]
ROWS = [
    {"question": f"{a} and {b} make", "choices": ["many"] * at + [str(a + b)] + ["few"] * (2 - at), "right": at}
    for a, b, at in SUMS
]


def write(folder, name, output_type, metrics, **fields):
    data = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    about = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "test",
        "output_type": output_type,
    }
    about |= {"metric_list": [{"metric": metric} for metric in metrics], "doc_to_text": "{{question}}", **fields}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(about))


@pytest.fixture(scope="module", autouse=True)
def _the_machine_is_described_once():  # in every result; asking pip what is installed takes longer than a task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", functools.cache(collect_env.get_pretty_env_info))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write(
        folder, "choose", "multiple_choice", ["acc"], doc_to_choice="{{choices}}", doc_to_target="{{right}}", tag="sums"
    )
    write(
        folder,
        "say",
        "generate_until",
        ["exact_match"],
        doc_to_target="{{choices[right]}}",
        generation_kwargs={"max_gen_toks": 6},
    )
    group = {"group": "both", "task": ["choose", "say"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def own_only():
    "The library's tasks are not looked at: thousands of files."
    import lm_eval.tasks

    class Own(lm_eval.tasks.TaskManager):
        def __init__(self, include_path=None, include_defaults=True, **kwargs):
            super().__init__(include_path=include_path, include_defaults=False, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", Own)
        yield


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(), tiny_tokenizer()


def test_the_batch_size_changes_no_pick_and_no_answer(folder, tiny):
    found = [run_tasks(*tiny, ["choose", "say"], include=folder, batch_size=size) for size in (1, 4, 32)]
    assert found[0]["scores"] == found[1]["scores"] == found[2]["scores"]
    answers = [[row["resps"] for row in one["samples"]["say"]] for one in found]
    assert answers[0] == answers[1] == answers[2]


def test_the_batch_size_is_how_many_rows_run_at_a_time(folder):
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("input_ids", *args[:1]))), with_kwargs=True
    )
    for size in (1, 5):
        seen.clear()
        run_tasks(model, tiny_tokenizer(), ["choose"], include=folder, batch_size=size)
        assert max(seen) == size


def test_each_filter_of_a_metric_has_a_score_of_its_own_rows(folder, tiny):
    take = {"function": "take_first"}
    filters = [
        {"name": n, "filter": [{"function": "regex", "regex_pattern": p}, take]}
        for n, p in (("first", "(.)"), ("number", "([0-9]+)"))
    ]
    fields = {"doc_to_target": "{{choices[right]}}", "generation_kwargs": {"max_gen_toks": 4}, "filter_list": filters}
    write(folder, "filtered", "generate_until", ["exact_match"], **fields)
    found = run_tasks(*tiny, ["filtered"], include=folder)
    assert set(found["scores"]["filtered"]) == {"exact_match,first", "exact_match,number"}
    for name, score in found["scores"]["filtered"].items():
        rows = [row["exact_match"] for row in found["samples"]["filtered"] if row["filter"] == name.split(",")[1]]
        assert score == interval(rows) and score["n"] == len(ROWS)


def test_a_limit_takes_the_first_rows_and_says_so(folder, tiny):
    found = run_tasks(*tiny, ["choose"], include=folder, limit=2)
    whole = run_tasks(*tiny, ["choose"], include=folder)
    assert found["scores"]["choose"]["acc"] == interval([row["acc"] for row in whole["samples"]["choose"]][:2])
    assert found["scores"]["choose"]["acc"]["n"] == 2 and found["n-samples"]["choose"] == {
        "original": 6,
        "effective": 2,
    }


def test_a_group_and_a_tag_are_run_as_their_tasks(folder, tiny, own_only):
    both, tag, task = (run_tasks(*tiny, [name], include=folder) for name in ("both", "sums", "choose"))
    assert {"choose", "say"} <= set(both["scores"]) and set(tag["scores"]) == {"choose"}
    assert both["scores"]["choose"] == tag["scores"]["choose"] == task["scores"]["choose"]
    assert (
        both["scores"]["say"]["exact_match"]["n"] == 6
        and both["scores"]["both"]["acc"]["value"] == task["scores"]["choose"]["acc"]["value"]
    )


def test_what_is_no_mean_of_its_rows_says_how_many_there_were(folder, tiny):
    write(folder, "read", "loglikelihood_rolling", ["bits_per_byte"], doc_to_text="", doc_to_target="{{question}}")
    score = run_tasks(*tiny, ["read"], include=folder)["scores"]["read"]["bits_per_byte"]
    assert score["n"] == len(ROWS) and score["value"] > 0


def test_settings_reach_the_harness_by_their_own_names(folder, tiny):
    model, tok = tiny
    found = run_tasks(
        model, tok, ["say"], include=folder, chat=True, system_instruction="Be short.", gen_kwargs={"max_gen_toks": 3}
    )
    chats = [[{"role": "system", "content": "Be short."}, {"role": "user", "content": row["question"]}] for row in ROWS]
    assert [row["resps"][0][0] for row in found["samples"]["say"]] == generate(model, tok, chats, 3)


def test_the_same_seed_gives_the_same_samples_and_another_one_does_not(folder, tiny):
    how = {"include": folder, "gen_kwargs": {"do_sample": True, "temperature": 1.0}}
    one, same, other = (run_tasks(*tiny, ["say"], seed=seed, **how)["samples"]["say"] for seed in (3, 3, 4))
    assert [row["resps"] for row in one] == [row["resps"] for row in same] != [row["resps"] for row in other]


def test_the_scores_are_json(folder, tiny):
    scores = run_tasks(*tiny, ["choose", "say"], include=folder)["scores"]
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_a_failure_puts_everything_back(folder, tiny):
    import random

    import torch

    model, tok = tiny_model().train(), tiny_tokenizer()
    model.config.max_position_embeddings = 12
    config, states = model.generation_config, (random.getstate(), torch.get_rng_state().tolist())
    for task in ("choose", "say"):
        with pytest.raises(ValueError, match="would be cut from the left"):
            run_tasks(model, tok, [task], include=folder)
    assert model.training and model.generation_config is config
    assert states == (random.getstate(), torch.get_rng_state().tolist())


def test_what_just_fits_is_not_refused(folder, tiny):
    model, tok = tiny_model(), tiny_tokenizer()
    longest = max(len(row["question"] + " " + choice) for row in ROWS for choice in row["choices"])
    expected = run_tasks(model, tok, ["choose"], include=folder)["scores"]
    for room, fits in ((longest - 1, True), (longest - 2, False)):  # the last token is predicted, and not read
        model.config.max_position_embeddings = room
        if fits:
            assert run_tasks(model, tok, ["choose"], include=folder)["scores"] == expected
        else:
            with pytest.raises(ValueError, match=f"a prompt of {longest} tokens"):
                run_tasks(model, tok, ["choose"], include=folder)


def untouched():
    "A model that fails when it is called."
    model = tiny_model()
    model.forward = model.generate = None
    return model


@pytest.mark.parametrize(
    "tasks, how, error",
    [
        ([], {}, "tasks must be a list of names, at least one, got \\[\\]"),
        ("choose", {}, "tasks must be a list of names, at least one, got 'choose'"),
        ([{"task": "choose"}], {}, "tasks must be a list of names"),
        (["choose"], {"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        (["choose"], {"limit": 0.5}, "limit must be a whole number of at least 1, got 0.5"),
        (["choose"], {"batch_size": "auto"}, "batch_size must be a whole number of at least 1, got 'auto'"),
        (["choose"], {"include": "nowhere"}, "include must be a folder of the tasks' YAML files, got 'nowhere'"),
        (["choos"], {}, "the harness has no task 'choos'; the nearest are \\['choose'"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_touched(folder, own_only, tasks, how, error):
    with pytest.raises(ValueError, match=error):
        run_tasks(untouched(), tiny_tokenizer(), tasks, **{"include": folder, **how})


def test_a_path_is_no_name_so_no_file_runs_that_was_not_included(folder, own_only, tmp_path):
    write(tmp_path, "other", "generate_until", ["exact_match"])
    with pytest.raises(ValueError, match="the harness has no task '.*other.yaml'"):
        run_tasks(untouched(), tiny_tokenizer(), [str(tmp_path / "other.yaml")], include=folder)


def test_a_chat_needs_a_template(folder):
    tok = tiny_tokenizer()
    tok.chat_template = None
    with pytest.raises(ValueError, match="but the tokenizer has none; set one, or pass chat=False"):
        run_tasks(untouched(), tok, ["choose"], include=folder, chat=True)


def test_without_the_harness_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match="pip install 'ft-notebooks\\[eval\\]'"):
        run_tasks(None, None, ["choose"])


@pytest.mark.parametrize("name", ["loglikelihood", "tok_batch_encode"])
def test_a_harness_whose_prompts_could_be_cut_unseen_is_refused(folder, tiny, own_only, monkeypatch, name):
    from lm_eval.models import huggingface

    kinds = [kind for kind in huggingface.HFLM.__mro__ if name in vars(kind)]
    for kind in kinds:
        monkeypatch.delattr(kind, name)
    monkeypatch.setattr(huggingface.HFLM, "__abstractmethods__", frozenset())
    with pytest.raises(RuntimeError, match=f"lm_eval [0-9.]+ has no HFLM.{name}, .* pip install 'lm_eval==0.4"):
        run_tasks(*tiny, ["choose"], include=folder)


@pytest.mark.parametrize("stderr", ["N/A", None, float("nan"), math.inf])
def test_a_value_without_a_standard_error_stays_without_interval(stderr):
    assert _score(2.5, stderr, [], 7) == {"value": 2.5, "low": None, "high": None, "n": 7}


def test_ft_eval_asks_every_stage_the_tasks_and_keeps_the_scores(folder, tiny, tmp_path, monkeypatch, capsys):
    from ft_notebooks.cli.commands import main
    from ft_notebooks.course.example_task import appointments
    from ft_notebooks.lora.adapter import load_adapter

    monkeypatch.chdir(tmp_path)
    for part in tiny:
        part.save_pretrained("tiny")
    appointments(8).to_json("notes.jsonl")
    settings = ("model.name=tiny", "model.bits=32", "sft.bf16=false", "sft.max_steps=1", "sft.effective_batch=4")
    main(["sft", "notes.jsonl", *(part for setting in settings for part in ("--set", setting))])
    main(["eval", "runs/sft", "--tasks", "choose,say", "--include", str(folder), "--limit", "4"])
    kept = json.loads((tmp_path / "runs/sft/eval/tasks.json").read_text())
    assert list(kept["stages"]) == ["base", "sft"] and kept["limit"] == 4 and not kept["chat"]
    beside = run_tasks(load_adapter("runs/sft", 32), tiny[1], ["choose", "say"], include=folder, limit=4)
    assert kept["stages"]["sft"]["scores"] == beside["scores"]
    assert "choose: acc" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["eval", "runs/sft", "--tasks", "chose", "--include", str(folder)])
    assert "'choose'" in capsys.readouterr().err
