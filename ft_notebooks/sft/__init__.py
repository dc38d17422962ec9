"Supervised fine-tuning: a `trl.SFTTrainer` whose every default is proved"

import lazy_loader

_names = {
    "packed_documents": ["check_apart", "document_leak"],
    "trainer": ["sft_trainer"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
