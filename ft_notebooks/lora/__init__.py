"Adapters: added, loaded, checked and merged"

import lazy_loader

_names = {
    "adapter": ["lora_config", "add_adapter", "load_adapter", "merge_adapter", "dequantise_base", "expert_parameters"],
    "adapter_folder": ["check_adapter_folder", "trained_bits"],
    "merging": ["merge_folder", "check_merged"],
    "token_embeddings": ["token_rows"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
