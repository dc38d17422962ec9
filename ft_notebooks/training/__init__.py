"What every training run needs: batch plan, checks before the first step, guards, logs and plots"

import lazy_loader

_names = {
    "batch_plan": ["effective_batch", "plan"],
    "config": ["run_config"],
    "gradient_flow": ["GradientFlowCallback", "check_trained"],
    "nan_guard": ["BadStep", "NaNGuard", "find_spikes"],
    "out_of_memory": ["MemoryCheck", "explain_out_of_memory"],
    "preflight": ["add_guards", "check_start"],
    "progress_and_plots": ["plot_history", "watch", "check_trackers"],
    "run": ["fit"],
    "run_report": ["SamplesCallback"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
