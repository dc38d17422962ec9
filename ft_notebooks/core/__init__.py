"Shared utilities of all packages: atomic files, random state, fingerprints, error messages, device, CPU threads, processes"

import lazy_loader

_names = {
    "arguments": ["ArgumentError"],
    "cpu_threads": ["use_cpu_threads"],
    "device": ["hardware"],
    "processes": ["together", "check_same", "once_a_host", "join_processes"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
