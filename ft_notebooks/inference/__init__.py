"Generates answers in batches, the same as one by one (float32), and keeps finished batches if the process is killed"

import lazy_loader

_names = {
    "answer_cache": ["AnswerFile"],
    "generation": ["generate", "answers"],
    "prefix_cache": ["shared_prefix"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
