"How good a model is, and how sure that is: likelihood, scores, statistics, judges, benchmarks, report"

import lazy_loader

_names = {
    "answer_format": ["valid_json", "json_schema", "matches"],
    "comparison": ["compare_stages", "group_rows", "seen_rows", "scores_without"],
    "judge": ["chat_endpoint", "llm_judge", "pairwise_judge"],
    "likelihood": ["perplexity", "bits_per_byte", "forced_match"],
    "lm_eval": ["run_tasks"],
    "metrics": [
        "normalised_match",
        "token_f1",
        "rouge_l",
        "chrf",
        "last_number",
        "number_match",
        "length",
        "stop_rate",
        "repetition",
        "find_scorers",
    ],
    "report": ["report_card", "plot_scores"],
    "runner": ["evaluate", "exact_match", "key_order", "interval"],
    "score_curves": ["plot_progress", "scores_by_step"],
    "statistics": ["compare", "rows_needed"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
