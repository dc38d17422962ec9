"""What does a type of file cost, and what does it save? Size, parity, score and speed of the course's SFT stage as GGUF
in four types, with transformers beside it.

Parity and score are of one file at a time. Speed is one point: all six programs are loaded together and timed in turn,
three rounds of notes that none of them has read, so that what else the machine does falls on all of them. It is in new
tokens per second of the process's CPU time, which on one thread that has a core to itself is the wall time, and beside
it per second of wall time; prompts included, each program as it comes: llama.cpp keeps the beginning that prompts share
from one request to the next, `generate` within one batch.

    python benchmarks/course/export_types.py                       # all points
    python benchmarks/course/export_types.py --only part=speed     # the speeds again
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

from common import measure, score

from ft_notebooks import appointments, load_adapter, load_tokenizer, merge_adapter
from ft_notebooks.course.demo_task import course_stage
from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.parity import PROSE, answer_parity, text_parity
from ft_notebooks.export.run_export import run_model
from ft_notebooks.inference.generation import answers, encode_prompts
from ft_notebooks.inference.llama_cpp import llama_server

SETTINGS = {
    "model": "SmolLM2-135M-Instruct, SFT stage of the course (LoRA r=16, merged in float32)",
    "score": "80 notes of the test part in phrases of training, 80 in new phrases",
    "parity": "32 of these notes; prose: 104 tokens of the Python reference; keys, values, attention in float32",
    "speed": "3 rounds of 8 notes, one thread; the median round, the slowest and the fastest",
    "decoding": "greedy, 40 tokens at most",
}
LONGEST, ROUNDS, STREAMS = 40, 3, (1, 8)
TYPES = ("f32", "f16", "bf16", "q8_0")
Reply = Callable[[list[list[dict]]], list[tuple[str, int]]]  # chats, all at a time -> texts, numbers of new tokens


def of_transformers(run: Path, bits: int) -> Reply:
    tok, model = load_tokenizer(run), merge_adapter(load_adapter(run, bits))

    def reply(chats):
        rows = answers(model, tok, chats, LONGEST, batch_size=8, progress=False)
        return [(row["text"], row["tokens"]) for row in rows]

    return reply


@contextmanager
def gguf_file(run: Path, type: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        merge_adapter(run_model(run)).save_pretrained(folder)
        load_tokenizer(run).save_pretrained(folder)
        file = Path(folder, "model.gguf")
        write_gguf(folder, file, type)
        yield file


@contextmanager
def of_file(run: Path, file: Path) -> Iterator[Reply]:
    tok, model = load_tokenizer(run), run_model(run)
    with llama_server(file, 512, max(STREAMS)) as server, ThreadPoolExecutor(max(STREAMS)) as pool:

        def reply(chats):
            prompts = encode_prompts(model, tok, chats, LONGEST)
            new = [ids for ids, _ in pool.map(lambda ids: server.next_tokens(ids, LONGEST), prompts)]
            return [(tok.decode(ids, skip_special_tokens=True), len(ids)) for ids in new]

        yield reply


def scores(reply: Reply, quick: bool) -> dict:
    found = {}
    for name, new_phrases in (("exact_match", False), ("exact_match_new_phrases", True)):
        chats = appointments(8 if quick else 80, part="test", new_phrases=new_phrases)["messages"]
        texts = [text for text, _ in reply([chat[:-1] for chat in chats])]
        right = [exact_match(text, chat[-1]["content"], {}) for text, chat in zip(texts, chats)]
        found |= score(interval(right), name)
    return found


def quality(name: str, run: Path, quick: bool) -> dict:
    if name.startswith("transformers"):
        return scores(of_transformers(run, int(name.partition("-")[2])), quick)
    tok, model = load_tokenizer(run), run_model(run)
    chats = appointments(4 if quick else 32, part="test")["messages"]
    prompts = encode_prompts(model, tok, [chat[:-1] for chat in chats], LONGEST)
    with gguf_file(run, name) as file:
        found = {"megabytes": round(file.stat().st_size / 1e6, 1)}
        with llama_server(file, exact=True) as server:
            found["answers"] = asdict(answer_parity(model, server, prompts, LONGEST))
            found["prose"] = asdict(text_parity(model, server, tok(PROSE).input_ids[:112]))
        with of_file(run, file) as reply:
            return found | scores(reply, quick)


def rates(reply: Reply, chats: list[list[dict]], streams: int) -> tuple[float, float]:
    "New tokens per second of CPU time, and of wall time."
    cpu, wall, tokens = time.process_time(), time.perf_counter(), 0
    for at in range(0, len(chats), streams):
        tokens += sum(new for _, new in reply(chats[at : at + streams]))
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - wall)


def middle(rounds: list[tuple[float, float]], streams: int) -> dict:
    cpu, wall = zip(*rounds)
    ends = {"": median(cpu), "_low": min(cpu), "_high": max(cpu), "_wall": median(wall)}
    return {f"streams_{streams}{end}": round(value, 1) for end, value in ends.items()}


def speed(run: Path, quick: bool) -> dict:
    size, rounds = (2, 1) if quick else (8, ROUNDS)
    notes = appointments(8 + 2 * size * rounds, part="test")["messages"]
    chats = iter([chat[:-1] for chat in notes])
    with ExitStack() as stack:
        replies = {f"transformers-{bits}": of_transformers(run, bits) for bits in (32, 16)}
        for name in TYPES:
            file = stack.enter_context(gguf_file(run, name))
            replies[name] = stack.enter_context(of_file(run, file))
        first = [next(chats) for _ in range(8)]
        for reply in replies.values():  # not timed: the first call
            reply(first)
        found: dict[str, dict] = {name: {streams: [] for streams in STREAMS} for name in replies}
        for _ in range(rounds):
            for streams in STREAMS:
                batch = [next(chats) for _ in range(size)]
                for name, reply in replies.items():
                    found[name][streams].append(rates(reply, batch, streams))
    by_name = {name: [middle(rounds, streams) for streams, rounds in times.items()] for name, times in found.items()}
    return {name: one | many for name, (one, many) in by_name.items()}


def run(point: dict, quick: bool) -> dict:
    stage = course_stage("sft", tempfile.gettempdir() + "/ft_export_types")
    if point["part"] == "speed":
        return {"tokens_per_second": speed(stage, quick)}
    return quality(point["file"], stage, quick)


if __name__ == "__main__":
    points = [{"part": "quality", "file": name} for name in ("transformers-32", "transformers-16", *TYPES)]
    measure(__file__, [*points, {"part": "speed"}], run, SETTINGS, __doc__)
