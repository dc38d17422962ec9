"What all tests share: no network, and the real model only where it already is"

import functools
import gc
import inspect
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import estimates
import forks
import model_cards
import processors
import pytest
import tqdm  # noqa: F401  # else `ft ... --quiet` in a test would switch off the bars of all tests after it

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run two at a time
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub, which reads it once


# what compares floating-point numbers: by a function for it, or with a bound or an expected value written as one
NUMBERS = re.compile(r"allclose|assert_close|isclose|approx\(|torch\.equal|[<>=]=? *-?\d*\.\d|[<>=]=? *-?\d+e-|losses")
# what computes in bfloat16, or in bits that are computed in it: alone changed where a processor lacks its instructions
BFLOAT16 = re.compile(r"bfloat16|bf16|bits=(4|8|16)|hardware\(\)")
# what takes long for processes, files or a whole command, or asks for files, errors and orders, which no processor
# rounds; it compares no numbers that a shorter proof does not compare too: for a notebook, the tests of its subject
LONG = re.compile(
    "|".join(
        [
            r"package/(core|distributed|tokenization)/",
            r"core/(cpu|proc)",
            r"package/(evaluation/(answer|judge|metrics)|loading/(example|model_files)|lora/adapter_folder|inference/answer_cache)",
            r"memory_estimate|simulated_step|training_memory|targets",
            r"data/(dedup|example_task|formats|messages|json_files|read|preference_report)",
            r"test_runs\[\d\d_|test_solutions",
            r"package/(data/(chat|preference)_encoding|dpo/(over_optimization|reference|shared_prompt)|lora/merging)",
            r"package/training/preflight",
            r"(sft|dpo)/trainer",
            r"distributed/(launcher|sharded_save|uneven_batches)",
            r"evaluation/(comp|html|lm_eval|report|runner|score|statistics)",
            r"package/export/|export/test_(card|export|lora_gguf|planted)|inference/(endpoint|test_end)",
            r"checkpointing/",
            r"training/(?!cpu_kernels|kernel_patching|loss_spikes|preflight|shared_prompt|test_)",
            r"cli/",
            r"test_(another_process|cli|cpu_threads|dedup|equality|finished|hosts|metrics_log|quantization_error|report|sharded_save|statistics)",
            r"killed|two_processes|resumed|goes_on|the_demos|compiled_model",
            r"refused|what_peft_saves|script_saves|higher_learning_rate|shuffled|bootstrap|no_random_state|a_picture",
            r"_without\[\{'gradient_|_of_trls\[(accumulated|smoothed)",  # one setting of several
        ]
    )
)
# whole runs and searches, of which shorter tests compare each part (the loss, the gradients, the reference, a merge):
# as without AVX-512 they run with LEG=lowest
WHOLE = re.compile(
    "|".join(
        [
            r"wrong_merge_is_found|one_token_that_is_lost|eight_bits_is_measured|any_two_texts_have_finite",
            r"content_with_rows_of_new_tokens|arguments_of_the_trainer_reach|two_hundred_random_conversations",
            r"test_dpo_trainer.*(evaluated_as|four_bits|hinge|wide_enough|holds_whole_modules|of_an_evaluation|were_given)",
            r"trained_to_the_same_bits|a_run_logs_what_trls_own|weights_of_trls\[(full|adapter)",
            r"before_and_after_evaluation_and_generation\[(True|False-16)",
            r"learned_to_like|float32_on_a_base_in_16_bits|by_peft_config_trains|common_length_counts",
        ]
    )
)


def pytest_configure(config):
    if not config.option.numprocesses:  # a process that runs tests, and not one that deals them out
        forks.renew_threads()
        processors.without_vnni()
    if estimates.FOLDER not in os.environ:  # else it is that of the process that deals them out
        os.environ[estimates.FOLDER] = config.estimates = tempfile.mkdtemp(prefix="estimates-")


def pytest_unconfigure(config):
    if folder := getattr(config, "estimates", None):
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path, config):
    "Files without a test that compares numbers need not be imported where only those are asked for."
    if collection_path.suffix != ".py" or not config.option.markexpr.startswith(("numbers", "bfloat16")):
        return None
    wanted = BFLOAT16 if config.option.markexpr.startswith("bfloat16") else NUMBERS
    text = collection_path.read_text(encoding="utf-8")
    if collection_path.name == "test_notebooks.py" or (
        wanted.search(text) and not LONG.search(collection_path.relative_to(config.rootpath).as_posix())
    ):
        return None
    return True


@functools.cache
def source_of(function) -> str:
    return inspect.getsource(function)


def pytest_collection_modifyitems(config, items):
    """`numbers` marks what compares numbers, which other processors round otherwise: `.ci/run` runs it as on several of
    them. The notebooks come first, since the lessons run one after the other and take longest.
    """
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    for item in items if config.option.markexpr else ():
        notebook = item.callspec.params.get("nb") if item.originalname == "test_runs" else None
        if notebook:
            cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        else:
            source = source_of(item.function)
        if NUMBERS.search(source) and not LONG.search(item.nodeid):
            item.add_marker("numbers")
            if WHOLE.search(item.nodeid):
                item.add_marker("whole")
            if BFLOAT16.search(source):
                item.add_marker("bfloat16")


@pytest.fixture(scope="session")
def real_model() -> Path | None:  # the folder that `smollm2()` returns without a download, or None
    from ft_notebooks.loading.example_models import _cache, smollm2

    return smollm2() if (_cache() / "SmolLM2-135M-Instruct").is_dir() else None


@pytest.fixture(autouse=True)
def _skip_without_the_real_model(request):
    if request.node.get_closest_marker("smol") and not request.getfixturevalue("real_model"):
        pytest.skip(
            'needs the real model: python -c "from ft_notebooks.loading.example_models import smollm2; smollm2()"'
        )


@pytest.fixture(autouse=True)
def _skip_what_is_slow(request):
    if request.node.get_closest_marker("slow") and "slow" not in os.environ.get("NB_FLAGS", "").split():
        pytest.skip('takes long, and proves on the real model what is proved on the tiny one: NB_FLAGS="smol slow"')


STARTED_IN = Path.cwd()


@pytest.fixture(autouse=True)
def _works_in_an_empty_folder(tmp_path, monkeypatch):
    "What lies in the folder that pytest was started in, such as `runs/demo` of `ft demo`, changes no test."
    if Path.cwd() == STARTED_IN:  # else the tests of a module share a folder of theirs
        monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_no_garbage():
    """A trainer begins with `gc.collect()`, which would look at half a million objects of the libraries: longer than it
    trains.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _pictures_are_empty(request):
    """To draw the losses into a file takes longer than the run. What is drawn is tested in the figures, and written by
    the notebooks and in `test_report.py`.
    """
    from matplotlib.figure import Figure

    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_report.py":
            patch.setattr(Figure, "savefig", lambda self, *args, **kwargs: save(Figure(), *args, **kwargs))
        yield


@pytest.fixture(autouse=True, scope="module")
def _estimates_are_shared():
    estimates.share()


@pytest.fixture(autouse=True, scope="session")
def _a_card_is_compiled_once():
    model_cards.compile_once()
