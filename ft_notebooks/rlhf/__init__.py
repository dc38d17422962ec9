"Trains a reward model on preference pairs, scores answers with it, and says how good it is on held-out pairs"

import lazy_loader

_names = {
    "reward_model": ["load_reward_model", "reward_scores", "score_ids"],
    "reward_statistics": ["evaluate_reward", "pair_statistics", "plot_pair_statistics"],
    "reward_training": ["pair_losses", "reward_trainer"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
