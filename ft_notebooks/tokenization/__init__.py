"Text to token ids: padding, chat templates, and views of what is trained"

import lazy_loader

_names = {
    "chat_template": ["ChatTemplate", "template_additions"],
    "padding": ["load_tokenizer", "ensure_pad_token", "add_pad_token", "check_vocabulary", "pad_batch"],
    "token_view": ["show_tokens", "plot_lengths", "plot_labels"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
