import logging

__version__ = "0.1.0"

_modules = {  # module -> the public names that are also reachable as `from ft_notebooks import name`
    "loading.example_models": "tiny_tokenizer tiny_model smollm2",
    "core.cpu_threads": "use_cpu_threads",
    "tokenization.padding": "load_tokenizer",
    "tokenization.chat_template": "ChatTemplate",
    "tokenization.token_view": "show_tokens",
    "tokenization.length_report": "plot_lengths",
    "loading.memory_estimate": "estimate_memory largest_batch",
    "core.device": "hardware",
    "loading.quantized_loading": "load_model",
    "lora.adapter": "lora_config add_adapter load_adapter merge_adapter",
    "lora.merging": "merge_folder",
    "data.deduplication": "split",
    "data.read": "read_chats read_preferences",
    "course.example_task": "appointments",
    "data.chat_encoding": "encode_chat encode_chats",
    "inference.generation": "generate",
    "checkpointing.integrity": "last_good_checkpoint",
    "training.progress_and_plots": "plot_history",
    "training.batch_plan": "effective_batch",
    "training.run": "fit",
    "sft.trainer": "sft_trainer",
    "dpo.trainer": "dpo_trainer",
    "rlhf.reward_training": "reward_trainer",
    "rlhf.reward_model": "load_reward_model",
    "rlhf.reward_scoring": "reward_scores",
    "rlhf.reward_statistics": "evaluate_reward",
    "rlhf.grpo": "grpo_trainer",
    "distributed.launch_files": "accelerate_config",
    "evaluation.likelihood": "perplexity",
    "evaluation.runner": "evaluate",
    "evaluation.metrics": "exact_match find_scorers",
    "evaluation.statistics": "compare rows_needed",
    "evaluation.report": "report_card",
    "runs.record": "held_out",
    "runs.pipeline": "train_run",
}
_lazy = {name: module for module, names in _modules.items() for name in names.split()}

__all__ = sorted(_lazy)

# bitsandbytes, which peft imports, warns on some CPUs that an optional package is missing; nothing is wrong
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


def __getattr__(
    name,
):  # PEP 562: `from ft_notebooks import smollm2` imports ft_notebooks.loading.example_models only then
    if name in _lazy:
        from importlib import import_module

        return getattr(import_module("." + _lazy[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_lazy})
