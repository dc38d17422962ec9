__version__ = "0.1.0"

_modules = {  # module -> the public names that are also reachable as `from ft_notebooks import name`
    "loading.example_models": "tiny_tokenizer tiny_model smollm2",
    "loading.gguf_files": "gguf_tokenizer",
    "core.cpu_threads": "use_cpu_threads",
    "tokenization.padding": "load_tokenizer ensure_pad_token add_pad_token check_vocabulary pad_batch",
    "tokenization.chat_template": "ChatTemplate",
    "tokenization.template_defaults": "template_additions",
    "tokenization.token_view": "show_tokens plot_labels",
    "tokenization.length_report": "plot_lengths",
    "loading.model_files": "check_checkpoint",
    "loading.memory_estimate": "estimate_memory largest_batch plot_memory weight_bytes",
    "core.device": "hardware",
    "loading.quantized_loading": "load_model",
    "loading.four_bit_codes": "plot_code_book",
    "loading.quantization_error": "logits_distance token_distances round_weight weight_errors",
    "lora.adapter_folder": "check_adapter_folder trained_bits",
    "lora.adapter": "lora_config add_adapter load_adapter merge_adapter dequantise_base expert_parameters",
    "lora.token_embeddings": "token_rows",
    "lora.merging": "merge_folder check_merged",
    "data.deduplication": "split overlap",
    "data.read": "read_chats read_preferences",
    "data.example_task": "appointments",
    "data.chat_encoding": "encode_chat encode_chats check_end_token token_losses",
    "inference.answer_cache": "AnswerFile",
    "inference.prefix_cache": "shared_prefix",
    "inference.generation": "generate answers",
    "core.processes": "together check_same once_a_host join_processes",
    "checkpointing.best_checkpoint": "check_checkpoint_choice",
    "checkpointing.run_identity": "describe",
    "checkpointing.run_manifest": "run_folder check_manifest ManifestCallback",
    "checkpointing.integrity": "last_good_checkpoint mark_checkpoint",
    "checkpointing.graceful_stop": "save_on_signals",
    "distributed.uneven_batches": "count_rows_once own_batches own_loss own_rows",
    "checkpointing.resume": "exact_resume",
    "training.sample_outputs": "SamplesCallback show_samples",
    "training.progress_and_plots": "plot_history watch check_trackers",
    "training.batch_plan": "effective_batch plan",
    "training.config": "run_config",
    "training.run": "fit",
    "training.gradient_flow": "GradientFlowCallback check_trained",
    "training.nan_guard": "NaNGuard find_spikes",
    "training.out_of_memory": "MemoryCheck explain_out_of_memory",
    "sft.packing_check": "check_apart document_leak",
    "training.kernel_patching": "LabelHead levers speed_up",
    "training.preflight": "add_guards check_start",
    "sft.trainer": "sft_trainer",
    "dpo.loss": "dpo_loss pair_logps",
    "data.preference_encoding": "encode_pair encode_pairs",
    "data.preference_report": "pair_report plot_pairs suspect_swapped",
    "dpo.over_optimization": "CollapseCallback plot_collapse",
    "dpo.reference": "ReferenceCallback with_reference",
    "dpo.trainer": "dpo_trainer",
    "distributed.launch_files": "accelerate_config check_config",
    "distributed.launcher": "host_commands launch",
    "distributed.slurm": "slurm_job",
    "distributed.sharded_save": "sharded_memory save_whole check_whole",
    "distributed.throughput": "step_time",
    "evaluation.likelihood": "perplexity bits_per_byte forced_match",
    "evaluation.runner": "evaluate exact_match key_order interval",
    "evaluation.answer_format": "valid_json json_schema matches",
    "evaluation.judge": "chat_endpoint llm_judge pairwise_judge",
    "evaluation.metrics": "normalised_match token_f1 rouge_l chrf last_number number_match length stop_rate repetition find_scorers",
    "evaluation.statistics": "compare rows_needed",
    "evaluation.comparison": "compare_stages group_rows seen_rows scores_without",
    "evaluation.score_curves": "plot_progress scores_by_step",
    "evaluation.score_bars": "plot_scores",
    "evaluation.report": "report_card",
    "evaluation.lm_eval": "run_tasks",
    "cli.settings": "read_settings",
}
_lazy = {name: module for module, names in _modules.items() for name in names.split()}

__all__ = sorted(_lazy)


def __getattr__(
    name,
):  # PEP 562: `from ft_notebooks import smollm2` imports ft_notebooks.loading.example_models only then
    if name in _lazy:
        from importlib import import_module

        return getattr(import_module("." + _lazy[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_lazy})
