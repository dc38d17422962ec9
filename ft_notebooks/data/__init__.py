"Files to conversations and preference pairs, and these to token ids and labels"

import lazy_loader

_names = {
    "chat_encoding": ["encode_chat", "encode_chats", "check_end_token", "token_losses"],
    "deduplication": ["split", "overlap"],
    "preference_encoding": ["encode_pair", "encode_pairs"],
    "preference_report": ["pair_report", "plot_pairs", "suspect_swapped"],
    "read": ["read_chats", "read_preferences", "appointments"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
