__version__ = "0.1.0"

_lazy = {  # public name -> the module that holds it
    "tiny_tokenizer": "models", "tiny_model": "models", "smollm2": "models",
}

__all__ = sorted(_lazy)


def __getattr__(name):  # PEP 562: `from ft_notebooks import smollm2` imports ft_notebooks.models only then
    if name in _lazy:
        from importlib import import_module

        return getattr(import_module("." + _lazy[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_lazy})
