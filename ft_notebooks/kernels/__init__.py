"CPU kernels with the same values and gradients, for attention, LoRA, norms and the head, and one prompt for several texts"

import lazy_loader

_names = {
    "attention": ["block_attention", "document_attention", "document_mask"],
    "fused_layers": ["lora_linear", "rms_norm"],
    "label_head": ["LabelHead"],
    "log_probs": ["label_log_probs"],
    "patching": ["optimizations", "speed_up"],
    "shared_prompt": ["SharedForward", "why_not_shared"],
    "shared_rows": ["sharing"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
