"Direct preference optimization: a `trl.DPOTrainer` with the right reference, and what it is made of"

import lazy_loader

_names = {
    "loss": ["dpo_loss", "pair_logps"],
    "over_optimization": ["CollapseCallback", "plot_collapse"],
    "reference": ["ReferenceCallback", "KeptReference"],
    "trainer": ["dpo_trainer"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
