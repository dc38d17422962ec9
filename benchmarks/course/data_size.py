"""How many examples does a task need? Exact match on held-out notes after SFT on 4 to 1,024 notes.

Two curves: test notes in phrases that training has seen (with other names and activities), and test notes in phrases
that it has not. Each run takes one epoch, and at least 24 optimizer steps of 8 notes: so many are enough for the
training loss to come to rest, and a small set is shown several times instead of being trained too briefly.

    python benchmarks/course/data_size.py                          # all points
    python benchmarks/course/data_size.py --only "n=64 seed=0"     # this one again
"""

from common import measure, score, train

from ft_notebooks import (
    add_adapter,
    appointments,
    evaluate,
    load_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    smollm2,
)

SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "bits": 16,
    "method": "LoRA r=16 on all linear layers",
    "learning_rate": 1e-3,
    "effective_batch": "min(n, 8)",
    "steps": "max(n / 8, 24): one epoch, at least 24 steps",
    "test": "100 notes of the test part, greedy decoding with the adapter merged, 40 tokens at most",
}


def run(point: dict, quick: bool) -> dict:
    n, seed = point["n"], point["seed"]
    tok, model = load_tokenizer(smollm2()), load_model(smollm2())
    steps, losses = 0, []
    if n:  # 0 examples: the model as it was published
        steps = 2 if quick else max(n // 8, 24)
        model = add_adapter(model, lora_config(model, r=16), seed=seed)
        rows = appointments(n, seed=seed)
        losses = train(
            model, tok, rows, learning_rate=1e-3, effective_batch=min(n, 8), max_steps=steps, seed=seed,
            data_seed=seed,
        )  # fmt: skip
        model = merge_adapter(model)
    found = {"steps": steps, "epochs": min(n, 8) * steps / n if n else 0, "loss_first": None, "loss_last_8": None}
    if losses:
        found |= {"loss_first": round(losses[0], 4), "loss_last_8": round(sum(losses[-8:]) / len(losses[-8:]), 5)}
    for name, new_phrases in (("exact_match", False), ("exact_match_new_phrases", True)):
        test = appointments(4 if quick else 100, part="test", new_phrases=new_phrases)
        scores = evaluate(model, tok, test, ["exact_match"], max_new_tokens=40, batch_size=50).scores
        found |= score(scores["exact_match"], name)
        found[name.replace("exact_match", "test_perplexity")] = round(scores["perplexity"]["value"], 5)
    return found


if __name__ == "__main__":
    points = [{"n": n, "seed": seed} for n in (4, 16, 64, 256, 1024) for seed in (0, 1, 2)]
    measure(__file__, [{"n": 0, "seed": 0}, *points], run, SETTINGS, __doc__)
