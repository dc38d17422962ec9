"""Does my GPU compute as it should, and how fast? Each stage of the package on the GPU and on the CPU, compared, and tokens a second beside plain TRL"""

import lazy_loader

_names = {
    "program": ["check_gpu"],
    "speed": ["random_model", "train_speed"],
    "steps": ["NotHere", "Step"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
