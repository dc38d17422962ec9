"`ft`, the command line: settings, the stages of a run, commands"

import lazy_loader

_names = {
    "settings": ["read_settings"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
