"Trains a reward model on preference pairs, and scores answers with it"

import lazy_loader

_names = {
    "reward_model": ["load_reward_model", "reward_scores", "score_ids"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
