"A run from its rows to its record: held-out rows, the model's choice, training with a measure before and after, and the table of stages"

import lazy_loader

_names = {
    "pipeline": ["train_run"],
    "record": ["held_out"],
    "trial": ["Trial"],
    "tuning": ["Candidate", "candidates", "tune"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
