"Models in 32 to 4 bits: what they take in memory, what they lose, and whether a folder can be loaded"

import lazy_loader

_names = {
    "example_models": ["tiny_tokenizer", "tiny_model", "gguf_tokenizer", "smollm2"],
    "four_bit_codes": ["plot_code_book"],
    "memory_estimate": ["estimate_memory", "largest_batch", "plot_memory", "weight_bytes"],
    "model_files": ["check_checkpoint"],
    "quantization_error": ["logits_distance", "token_distances", "round_weight", "weight_errors"],
    "quantized_loading": ["load_model"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
