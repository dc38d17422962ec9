"Generates answers, in batches or for OpenAI's clients; keeps finished batches if the process is killed"

import lazy_loader

_names = {
    "answer_cache": ["AnswerFile"],
    "chat_http": ["chat_app"],
    "endpoint": ["serve", "serving"],
    "generation": ["generate", "answers"],
    "llama_cpp": ["llama_server"],
    "model_programs": ["folder_model", "gguf_model", "open_model"],
    "prefix_cache": ["shared_prefix"],
    "token_stream": ["Sampling", "ServedModel"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
