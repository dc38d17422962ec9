"Instruments that measure what the rows of a file have in common, and say where one departs from it"

import lazy_loader

_names = {
    "copying": ["copied_values"],
    "evidence": ["ALPHA", "Anomaly", "announced", "answers_change", "auc_chance", "held_out_rows", "told_apart"],
    "fit": ["fit_of_answers"],
    "forms": ["questions_to_the_user", "unusual_forms"],
    "labels": ["class_marks", "option_marks", "strange_labels"],
    "leftovers": ["heaps", "leftover_marks"],
    "pair_features": ["deciding_feature"],
    "pairs": [
        "Pairs",
        "answers_elsewhere",
        "contradicted_scores",
        "contradictory_pairs",
        "exchanged_pairs",
        "same_answers",
    ],
    "pieces": ["added_pieces"],
    "repetition": ["repeated_text", "unshown_systems"],
    "rewards": ["MeasuredReward", "reward_ranks", "reward_values", "weighted_sum"],
    "texts": ["Texts", "sampled_rows"],
    "turns": ["exchanged_roles", "turn_order"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
