"""What does a bit cost in quality? SmolLM2 in 32, 16, 8 and 4 bits, as it is and under a LoRA adapter.

The base alone: perplexity on general English (4,096 tokens of `pydoc_data.topics`), with the ratio to 32 bits on the
same rows. With an adapter that was trained on that base, which for 4 bits is QLoRA: exact match on 100 held-out notes
in phrases of training and on 100 in new ones, by `forced_match`, which finds in one pass what greedy decoding would
write. The base stays in its bits while it is measured.

    python benchmarks/course/bits_quality.py                               # all points
    python benchmarks/course/bits_quality.py --only "part=base bits=4"     # this one again
"""

import functools

import numpy as np
from common import excerpt, excerpt_settings, measure, score, train

from ft_notebooks import add_adapter, appointments, load_model, load_tokenizer, lora_config, perplexity, smollm2
from ft_notebooks.evaluation.likelihood import forced_match, row_losses
from ft_notebooks.evaluation.runner import bootstrap_interval, interval

SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "bits": "32: float32; 16: bfloat16; 8: LLM.int8; 4: NF4 with double quantization",
    **excerpt_settings(),
    "adapter": "LoRA r=16 on all linear layers",
    "learning_rate": 1e-3,
    "examples": 192,
    "effective_batch": 8,
    "steps": 24,
    "test": "100 notes of the test part in phrases of training, 100 in new phrases",
}


@functools.cache
def excerpt_losses(bits: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    "The loss of each row in nats, summed, and its number of tokens."
    tok = load_tokenizer(smollm2())
    return row_losses(load_model(smollm2(), bits=bits), tok, excerpt(tok, rows), batch_size=1)


def base(bits: int, quick: bool) -> dict:
    rows = 2 if quick else 8
    (nats, counts), (reference, _) = excerpt_losses(bits, rows), excerpt_losses(32, rows)
    of_mean = lambda a, n, axis: np.exp(a.sum(axis) / n.sum(axis))  # noqa: E731
    found = score(bootstrap_interval(of_mean, nats, counts), "perplexity")
    return found | score(bootstrap_interval(of_mean, nats - reference, counts), "perplexity_ratio_to_32")


def sft(bits: int, seed: int, quick: bool) -> dict:
    tok, model = load_tokenizer(smollm2()), load_model(smollm2(), bits=bits)
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    losses = train(
        model, tok, appointments(192, seed=seed), learning_rate=1e-3, effective_batch=8, max_steps=2 if quick else 24,
        seed=seed, data_seed=seed,
        padding_free=bits != 8,  # LLM.int8 looks for outliers in all rows of a step together, so that rows would mix
    )  # fmt: skip
    found = {"loss_first": round(losses[0], 4), "loss_last_8": round(sum(losses[-8:]) / len(losses[-8:]), 5)}
    for name, new_phrases in (("exact_match", False), ("exact_match_new_phrases", True)):
        test = appointments(4 if quick else 100, part="test", new_phrases=new_phrases)
        found |= score(interval(forced_match(model, tok, test)), name)
        found[name.replace("exact_match", "test_perplexity")] = round(perplexity(model, tok, test), 5)
    return found


def run(point: dict, quick: bool) -> dict:
    return base(point["bits"], quick) if point["part"] == "base" else sft(point["bits"], point["seed"], quick)


if __name__ == "__main__":
    points = [{"part": "base", "bits": bits} for bits in (32, 16, 8, 4)]
    points += [{"part": "sft", "bits": bits, "seed": seed} for seed in (0, 1, 2) for bits in (32, 16, 8, 4)]
    measure(__file__, points, run, SETTINGS, __doc__)
