"OpenAI's chat API over a GGUF file or a model folder: requests, streams, the programs that compute, and the endpoint"

import lazy_loader

_names = {
    "chat_http": ["chat_app"],
    "endpoint": ["serve", "serving"],
    "model_programs": ["open_model", "folder_model", "gguf_model"],
    "token_stream": ["ServedModel", "Sampling"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
