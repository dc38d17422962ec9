"The course's own: the built-in task with its stages and scores, ft demo, ft gpu, LLM judges, drawings and sliders, PPO and 4-bit codes by hand, measured results"

import lazy_loader

_names = {
    "advantages": ["group_advantages"],
    "demo_task": ["course_scores", "course_stage", "demo_pairs"],
    "drawing": ["Drawing"],
    "example_task": ["appointments"],
    "four_bit_codes": ["plot_code_book"],
    "gpu_check": ["check_gpu"],
    "gpu_figures": ["NotHere", "Step"],
    "gpu_speed": ["random_model", "train_speed"],
    "judge": ["chat_endpoint", "llm_judge", "pairwise_judge"],
    "lessons": ["measured", "start_lesson"],
    "ppo": ["answer_logps", "gae", "ppo_loss", "ppo_steps", "rollout", "token_rewards", "value_loss", "whiten"],
    "reply_task": ["customer_mails", "rubric"],
    "sliders": ["explore"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
