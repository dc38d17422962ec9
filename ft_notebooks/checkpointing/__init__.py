"The same run after a kill: what a run is, which checkpoints are complete, stopping and going on"

import lazy_loader

_names = {
    "checkpoint_saving": ["check_checkpoint_choice"],
    "graceful_stop": ["save_on_signals"],
    "integrity": ["last_good_checkpoint", "mark_checkpoint"],
    "resume": ["exact_resume"],
    "run_identity": ["describe"],
    "run_lock": ["lock_run"],
    "run_manifest": ["run_folder", "check_manifest", "ManifestCallback"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
