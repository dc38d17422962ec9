"What `estimate_memory` says, beside memory that is really allocated: more architectures, more settings, and a process"

import copy
import importlib.util
import os
import sys
from itertools import accumulate
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

from ft_notebooks.loading.memory_estimate import (
    Memory,
    _empty_model,
    estimate_memory,
    largest_batch,
    plot_memory,
    weight_bytes,
)
from ft_notebooks.loading.simulated_step import _allocate, _earlier_step, _no_memory, head_loss
from ft_notebooks.lora.adapter import lora_config

pytestmark = pytest.mark.whole

SMALL = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
ALTERNATING = ["sliding_attention", "full_attention"]
CONFIGS = {
    "llama": LlamaConfig(num_hidden_layers=5, **SMALL),
    "tied llama": LlamaConfig(num_hidden_layers=3, tie_word_embeddings=True, **SMALL),
    "qwen3": Qwen3Config(num_hidden_layers=4, **SMALL),
    "gemma3": Gemma3TextConfig(num_hidden_layers=7, layer_types=(ALTERNATING * 4)[:7], sliding_window=16, **SMALL),
    "mixtral": MixtralConfig(num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2, **SMALL),
    "gpt2": GPT2Config(vocab_size=300, n_embd=64, n_layer=4, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1),
}


def really(config, method: str, checkpointing: bool, dtype: torch.dtype | None, ids, copies=False) -> dict[str, int]:
    """A real step of the real model: bytes of what it holds. Copies by autocast are told by the shape of a weight, and
    count as activations if `copies`.
    """
    wide = torch.float32 if method == "full" else torch.bfloat16
    base = model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=wide).train()
    weights = sum(p.nbytes for p in base.parameters())
    if method == "lora":
        model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    shapes = {shape for p in trained for shape in (p.shape, p.shape[::-1])}
    known, seen = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), ids]}, {}

    def keep(thing):
        for t in tree_leaves(thing):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                if t.dtype != torch.bfloat16 or t.shape not in shapes or dtype is None or copies:
                    seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return thing

    if checkpointing:
        base.get_input_embeddings().register_forward_hook(
            lambda module, args, out: keep(out) if method == "lora" else None
        )
        for layer in base.base_model.h if hasattr(base.base_model, "h") else base.base_model.layers:
            layer.register_forward_pre_hook(lambda layer, args, kwargs: keep((args, kwargs)) and None, with_kwargs=True)
    optimizer = torch.optim.AdamW(trained, fused=True)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        with saved_tensors_hooks(keep, lambda t: t):
            hidden = keep(base.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        base.get_output_embeddings()(hidden).float().logsumexp(-1).sum().backward()
    optimizer.step()
    return {
        "weights": weights,
        "adapter": sum(p.nbytes for p in model.parameters()) - weights,
        "gradients": sum(p.grad.nbytes for p in trained if p.grad is not None),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values()),
        "activations": sum(seen.values()),
    }


# each two of architecture, method, checkpointing and dtype; the lesson has a llama with all of them
@pytest.mark.parametrize(
    "name, method, checkpointing, dtype",
    [
        ("tied llama", "full", False, torch.bfloat16),
        ("tied llama", "lora", True, None),
        ("qwen3", "full", True, None),
        ("qwen3", "lora", False, torch.bfloat16),
        ("gemma3", "full", False, None),
        ("gemma3", "lora", True, torch.bfloat16),
        ("gpt2", "full", True, torch.bfloat16),
        ("gpt2", "lora", False, None),
        ("mixtral", "full", True, None),
        ("mixtral", "full", False, None),
        ("mixtral", "lora", True, torch.bfloat16),
    ],
)
def test_every_part_is_exact_for_every_architecture(name, method, checkpointing, dtype):
    ids = torch.randint(0, 300, (3, 37), generator=torch.Generator().manual_seed(0))
    guess = estimate_memory(CONFIGS[name], method, batch=3, length=37, checkpointing=checkpointing, dtype=dtype)
    measured = really(CONFIGS[name], method, checkpointing, dtype, ids)
    assert {part: getattr(guess, part) for part in measured} == measured
    assert min(vars(guess).values()) >= 0 and guess.total == sum(vars(guess).values())


def test_the_experts_of_a_mixture_count_with_their_copies():  # which are cast as a view of another shape
    ids = torch.randint(0, 300, (3, 37), generator=torch.Generator().manual_seed(0))
    settings = "lora", False, torch.bfloat16
    guess = estimate_memory(CONFIGS["mixtral"], "lora", batch=3, length=37, checkpointing=False)
    measured = really(CONFIGS["mixtral"], *settings, ids, copies=True)
    assert guess.copies + guess.activations == pytest.approx(measured["activations"], rel=0.01)


def test_the_peak_in_a_layer_that_is_recomputed_is_what_the_allocator_had_given_out():
    ids = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(0))
    guess = estimate_memory(CONFIGS["qwen3"], batch=3, length=64, device="cpu", checkpointing=True, whole_logits=True)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["qwen3"]), dtype=torch.bfloat16).train()
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    base.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with torch.autocast("cpu", torch.bfloat16):
            loss = base(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    events = profile.profiler.kineto_results.events()
    peak = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert guess.working > 0.1 * peak  # it is not the head that takes the most here
    assert 0.85 * peak < guess.copies + guess.activations + guess.logits + guess.working <= peak  # kernels have buffers


def test_the_configuration_and_the_adapter_that_were_given_stay_as_they_were():
    config, adapter = (
        copy.deepcopy(CONFIGS["llama"]),
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    before = config.to_dict(), adapter.to_dict()
    estimate_memory(config, adapter=adapter, length=32)
    assert (config.to_dict(), adapter.to_dict()) == before


def test_a_few_layers_tell_what_all_of_them_cost(monkeypatch):
    settings = dict(method="qlora", length=64, batch=2, checkpointing=True, device="cuda")
    short = estimate_memory(CONFIGS["llama"], **settings)
    assert min(vars(short).values()) >= 0 and short.total == sum(vars(short).values())
    monkeypatch.setattr("ft_notebooks.loading.simulated_step._periods", lambda model: (5, 5, 0))
    assert short == estimate_memory(CONFIGS["llama"], **settings)


def test_nothing_is_loaded_no_random_number_is_drawn_and_bitsandbytes_quantises_as_before():
    import bitsandbytes as bnb

    state = torch.get_rng_state()
    huge = LlamaConfig(  # the few layers are quick to make
        vocab_size=128_256,
        hidden_size=65_536,
        intermediate_size=212_992,
        num_hidden_layers=8,
        num_attention_heads=512,
        num_key_value_heads=32,
    )
    assert estimate_memory(huge, "qlora").total > 200e9  # more than any machine that runs this test
    assert torch.equal(torch.get_rng_state(), state)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert (bnb.functional.dequantize_4bit(packed, state) - weight).abs().mean() < 0.1


def test_more_never_takes_less():
    base = estimate_memory(CONFIGS["llama"], "full", length=64, batch=2).total
    assert estimate_memory(CONFIGS["llama"], "full", length=65, batch=2).total > base
    assert estimate_memory(CONFIGS["llama"], "full", length=64, batch=3).total > base
    assert estimate_memory(CONFIGS["llama"], "full", length=64, batch=2, checkpointing=False).total > base
    assert estimate_memory(CONFIGS["llama"], "full", length=64, batch=2, device="cpu", checkpointing=True).total > base
    assert estimate_memory(CONFIGS["llama"], "full", length=64, batch=2, labelled=0.3).total < base


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(method="dora"), "method must be"),
        (dict(bits=8), "bits=8"),
        (dict(batch=0), "batch=0"),
        (dict(length=1), "length=1"),
        (dict(device="tpu"), "got 'tpu'"),
        (dict(labelled=0), "labelled=0"),
        (dict(method="full", bits=4), "bits=4"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(CONFIGS["llama"], **wrong)


@pytest.mark.parametrize("bits", [3, 0, "4", None])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be 4, 8, 16 or 32"):
        weight_bytes(CONFIGS["llama"], bits)


def test_one_row_more_than_the_largest_batch_does_not_fit():
    settings = dict(length=64, method="full", device="cpu")
    rows = largest_batch(CONFIGS["llama"], memory=30e6, margin=0.25, **settings)
    fits, one_more = (estimate_memory(CONFIGS["llama"], batch=n, **settings).total for n in (rows, rows + 1))
    assert rows > 1 and fits <= 0.75 * 30e6 < one_more


def test_the_bars_end_at_the_totals_and_cards_far_away_are_left_out():
    runs = {"a": Memory(9, 0, 1, 2, 0, 3, 4, 1), "b": Memory(1, 1, 1, 1, 1, 1, 1, 1)}
    runs = {
        name: Memory(**{part: size * 10**9 for part, size in vars(memory).items()}) for name, memory in runs.items()
    }
    (ax,) = plot_memory(runs).axes
    ends = {patch.get_y() + patch.get_height() / 2: patch.get_x() + patch.get_width() for patch in ax.patches}
    assert [round(ends[bar]) for bar in sorted(ends)] == [20, 8]
    words = {text.get_text().strip() for text in ax.texts}
    assert {"20.0 GB", "8.0 GB", "T4", "24 GB"} <= words and "80 GB" not in words


@pytest.mark.slow
@pytest.mark.smol
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux' /proc"
)
def test_a_process_that_trains_the_real_model_grows_by_what_was_estimated():
    script = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory_benchmark", script)
    spec.loader.exec_module(benchmark := importlib.util.module_from_spec(spec))
    measured = benchmark.run(("full", 1, 128), False, env={**os.environ, "OMP_NUM_THREADS": "1"}, python=sys.executable)
    assert abs(measured["peak"] / measured["estimate"] - 1) < 0.15


def code_books(model) -> list[torch.Tensor]:
    "The tensors beside the weights of layers of four bits: scales, and what they were quantized by."
    states = [m.weight.quant_state for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    return [t for one in states for state in (one, one.state2) for t in (state.absmax, state.code)]


def test_torchs_memory_tracker_finds_the_same_peak_of_8b_by_qlora(monkeypatch):
    """The estimate extrapolates from two layers; the tracker follows the step of four with the shapes of 8B. A build of
    torch for CPUs cannot run a backward pass on fake tensors of a card, so they are fake tensors of a CPU, as large.
    """
    track = MemTracker._track_module_params_and_buffers  # it would put a hook on frozen weights, which torch refuses

    def without_hooks(self, module, install_grad_hooks=True):
        return track(self, module, False)

    monkeypatch.setattr(MemTracker, track.__name__, without_hooks)
    shapes = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32}
    eight = LlamaConfig(num_hidden_layers=32, num_key_value_heads=8, **shapes)
    config = LlamaConfig(num_hidden_layers=4, num_key_value_heads=8, **shapes)
    with torch.device("meta"):
        model = get_peft_model(_empty_model(config, 4), lora_config(_empty_model(config, 4))).train()
    with _no_memory("cuda"):
        _allocate(model)
        base = model.get_base_model()
        base.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.enable_input_require_grads()
        _, states = _earlier_step(model)
        ids = torch.zeros(1, 2048, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, *states, *code_books(model), ids)
        with tracker:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
                loss = head_loss(base, ids, hidden)
            del hidden
            loss.backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    expected = estimate_memory(config, "qlora", length=2048).total
    assert abs(peak["Total"] - expected) < 0.001 * expected
    assert estimate_memory(eight, "qlora", length=2048).total < 15 * 2**30  # a T4's
