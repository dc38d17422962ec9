"""What does a type of file cost, and what does it save? Size, speed, parity and score of the course's SFT stage as GGUF
in four types, beside transformers in two.

Speed is in new tokens per second of wall time, prompts included: one request at a time, and eight at a time. All types
are timed in one run, one after the other; `ratio` is to transformers in float32 in the same run.

    python benchmarks/course/export_types.py
"""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from common import measure, score

from ft_notebooks import appointments, load_adapter, load_tokenizer, merge_adapter
from ft_notebooks.cli.pipeline import course_stage
from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.parity import PROSE, answer_parity, text_parity
from ft_notebooks.export.run_export import run_model
from ft_notebooks.inference.generation import answers, encode_prompts
from ft_notebooks.inference.llama_cpp import llama_server

SETTINGS = {
    "model": "SmolLM2-135M-Instruct, SFT stage of the course (LoRA r=16, merged in float32)",
    "rows": "80 notes of the test part for the score, 32 of them for parity, 16 for speed",
    "prose": "104 tokens of the Python reference",
    "decoding": "greedy, 40 tokens at most",
}
LONGEST = 40


def timed(one, prompts: list, streams: int) -> dict:
    "Tokens per second of `one(prompts) -> number of new tokens`, with `streams` prompts at a time."
    start, tokens = time.perf_counter(), 0
    for at in range(0, len(prompts), streams):
        tokens += one(prompts[at : at + streams])
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def speeds(one, prompts: list) -> dict:
    found = {}
    for streams in (1, 8):
        one(prompts[:streams])  # not timed: the first call
        result = timed(one, prompts, streams)
        found[f"tokens_per_second_{streams}"] = round(result["tokens"] / result["seconds"], 1)
    return found


def of_transformers(bits: int, run: Path, quick: bool) -> dict:
    tok, model = load_tokenizer(run), merge_adapter(load_adapter(run, bits))
    chats = [chat[:-1] for chat in appointments(4 if quick else 16, part="test")["messages"]]

    def one(batch):
        return sum(row["tokens"] for row in answers(model, tok, batch, LONGEST, batch_size=8, progress=False))

    return speeds(one, chats)


def of_file(type: str, run: Path, quick: bool) -> dict:
    tok, model, rows = load_tokenizer(run), run_model(run), appointments(8 if quick else 80, part="test")
    prompts = encode_prompts(model, tok, [chat[:-1] for chat in rows["messages"]], LONGEST)
    with tempfile.TemporaryDirectory() as folder:
        merge_adapter(run_model(run)).save_pretrained(folder)
        tok.save_pretrained(folder)
        file = Path(folder, "model.gguf")
        write_gguf(folder, file, type)
        found = {"megabytes": round(file.stat().st_size / 1e6, 1)}
        with llama_server(file, exact=True) as server:
            few = prompts[: 4 if quick else 32]
            found["answers"] = asdict(answer_parity(model, server, few, LONGEST))
            found["prose"] = asdict(text_parity(model, server, tok(PROSE).input_ids[:112]))
        with llama_server(file, 512, 8) as server, ThreadPoolExecutor(8) as pool:

            def one(batch):
                return sum(len(new) for new, _ in pool.map(lambda ids: server.next_tokens(ids, LONGEST), batch))

            found |= speeds(one, prompts[: 4 if quick else 16])
            new = pool.map(lambda ids: server.next_tokens(ids, LONGEST)[0], prompts)
            texts = [tok.decode(ids, skip_special_tokens=True) for ids in new]
    right = [exact_match(text, chat[-1]["content"], {}) for text, chat in zip(texts, rows["messages"])]
    return found | score(interval(right), "exact_match")


def run(point: dict, quick: bool) -> dict:
    stage = course_stage("sft", tempfile.gettempdir() + "/ft_export_types")
    if point["file"].startswith("transformers"):
        return of_transformers(int(point["file"].removeprefix("transformers-")), stage, quick)
    return of_file(point["file"], stage, quick)


if __name__ == "__main__":
    files = ["transformers-32", "transformers-16", "f32", "f16", "bf16", "q8_0"]
    measure(__file__, [{"file": name} for name in files], run, SETTINGS, __doc__)
