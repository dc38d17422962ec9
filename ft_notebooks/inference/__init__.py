"Generates answers, in batches or for OpenAI's clients, or asks an endpoint for them; keeps finished batches if the process is killed"

import lazy_loader

_names = {
    "answer_cache": ["AnswerFile"],
    "chat_api": ["ChatApi"],
    "endpoint": ["serve", "serving"],
    "endpoint_answers": ["ask_all", "estimated_tokens"],
    "generated_rows": ["answered_rows", "clean_rows", "write_rows"],
    "generation": ["generate", "answers"],
    "llama_cpp": ["llama_server"],
    "prefix_cache": ["shared_prefix"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
