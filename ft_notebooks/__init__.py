__version__ = "0.1.0"

_modules = {  # module -> the public names that are also reachable as `from ft_notebooks import name`
    "models": "tiny_tokenizer tiny_model gguf_tokenizer smollm2",
    "threads": "use_cpu_threads",
    "tokenizer": "load_tokenizer ensure_pad_token add_pad_token check_vocabulary pad_batch",
    "templates": "ChatTemplate template_additions",
    "views": "show_tokens plot_lengths plot_labels",
    "checkpoints": "check_checkpoint",
    "footprint": "estimate_memory largest_batch plot_memory weight_bytes",
    "loading": "hardware load_model",
    "four_bits": "plot_code_book",
    "quantization": "logits_distance token_distances round_weight weight_errors",
    "adapter_files": "check_adapter_folder trained_bits",
    "lora": "lora_config add_adapter load_adapter merge_adapter dequantise_base expert_parameters",
    "adapters": "token_rows",
    "merging": "merge_folder check_merged",
    "duplicates": "split overlap",
    "data": "read_chats read_preferences appointments",
    "masks": "encode_chat encode_chats check_end_token token_losses",
    "answer_file": "AnswerFile",
    "prefix": "shared_prefix",
    "generation": "generate answers",
    "agreement": "together check_same once_a_host join_processes",
    "best": "check_checkpoint_choice",
    "manifest": "describe check_manifest ManifestCallback",
    "marker": "last_good_checkpoint mark_checkpoint",
    "preemption": "save_on_signals",
    "ranks": "RanksTrainer own_rows",
    "resume": "ResumableTrainer",
    "samples": "SamplesCallback show_samples",
    "tracking": "plot_history watch check_trackers",
    "training": "effective_batch run_folder plan run_config",
    "guards": "GradientFlowCallback check_trained",
    "losses": "GuardedTrainer find_spikes",
    "packing": "check_apart document_leak",
    "speed": "levers speed_up",
    "start": "check_start",
    "sft": "sft_trainer",
    "margins": "dpo_loss pair_logps",
    "pairs": "encode_pair encode_pairs",
    "probe": "pair_report plot_pairs suspect_swapped",
    "collapse": "CollapseCallback plot_collapse",
    "reference": "ReferenceCallback KeptReference",
    "dpo": "dpo_trainer",
    "distributed": "accelerate_config check_config",
    "launcher": "host_commands launch slurm_job",
    "sharding": "sharded_memory save_whole check_whole",
    "scaling": "step_time",
    "likelihood": "perplexity bits_per_byte forced_match",
    "evaluation": "evaluate exact_match key_order interval",
    "forms": "valid_json json_schema matches",
    "judge": "chat_endpoint llm_judge pairwise_judge",
    "scorers": "normalised_match token_f1 rouge_l chrf last_number number_match length stop_rate repetition find_scorers",
    "significance": "compare rows_needed",
    "findings": "compare_stages group_rows seen_rows scores_without",
    "progress": "plot_progress scores_by_step",
    "report": "report_card plot_scores",
    "harness": "run_tasks",
    "settings": "read_settings",
}
_lazy = {name: module for module, names in _modules.items() for name in names.split()}

__all__ = sorted(_lazy)


def __getattr__(name):  # PEP 562: `from ft_notebooks import smollm2` imports ft_notebooks.models only then
    if name in _lazy:
        from importlib import import_module

        return getattr(import_module("." + _lazy[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_lazy})
