"Generates answers, in batches or for OpenAI's clients; keeps finished batches if the process is killed"

import lazy_loader

_names = {
    "answer_cache": ["AnswerFile"],
    "endpoint": ["serve", "serving"],
    "generation": ["generate", "answers"],
    "llama_cpp": ["llama_server"],
    "prefix_cache": ["shared_prefix"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
