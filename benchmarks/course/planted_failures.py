"""Which wrong files does a comparison of answers not see? Files with one failure each are asked for the answers to
eight notes as a client asks: with text. Beside them stands what the check of an export finds. The model is the course's
SFT stage, of 8 steps on 128 rows, and the same with 16 steps on 256 rows, which is surer of its answers.

    python benchmarks/course/planted_failures.py
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import gguf
import torch
from common import measure

from ft_notebooks import (
    add_adapter,
    appointments,
    fit,
    generate,
    load_model,
    load_tokenizer,
    lora_config,
    merge_adapter,
    sft_trainer,
    smollm2,
)
from ft_notebooks.course.demo_task import course_stage
from ft_notebooks.export.check import check_export
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.parity import answer_parity
from ft_notebooks.export.run_export import run_model
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.inference.llama_cpp import LlamaServer, llama_server

SETTINGS = {
    "model": "SmolLM2-135M-Instruct, LoRA r=16 merged in float32: "
    "SFT stage of the course, 8 steps; or 16 steps, 256 rows",
    "type": "f16, of all files",
    "rows": "8 notes of the test part, greedy, 40 tokens at most",
    "equal": "answers with the same text as those of transformers",
    "kl": "nats a token of the answers, between the run in transformers and the file; the file's own ids of the prompt",
    "largest": "the largest difference of a log-probability above -8 at these tokens",
    "found": "kinds of what check_export finds; the last two files are compared with a folder that is as wrong as they",
}
LONGEST = 40
KINDS = ("tensors", "settings", "vocabulary", "eos", "bos", "template", "tokens", "parity", "score")


def as_text(add):
    return lambda self, types: add(self, [gguf.TokenType.NORMAL] * len(types))


def value(other):
    return lambda add: lambda self, _: add(self, other)


WRITERS = {  # failures of the program that writes the file: a method of gguf.GGUFWriter, and what takes its place
    "nothing": None,
    "rope theta 10,000 for 100,000": ("add_rope_freq_base", value(1e4)),
    "RMS epsilon 1e-6 for 1e-5": ("add_layer_norm_rms_eps", value(1e-6)),
    "special tokens typed as text": ("add_token_types", as_text),
    "BOS doubled": ("add_add_bos_token", value(True)),
    "end token <|endoftext|>": ("add_eos_token_id", value(0)),
}
MERGED = ("LoRA at half strength", "merged in bfloat16")  # failures of the program that merges


def trained(steps: int) -> Path:
    "A finished run, which a second call finds again."
    here = Path(tempfile.gettempdir(), "ft_planted_failures")
    if steps == 8:
        return course_stage("sft", here)
    run = here / f"sft-{steps}"
    if not (run / "complete.json").is_file():
        model, tok = load_model(smollm2(), 16), load_tokenizer(smollm2())
        model = add_adapter(model, lora_config(model, r=16, lora_alpha=32))
        rows = appointments(16 * steps)
        fit(sft_trainer(model, tok, rows, output_dir=run, learning_rate=1e-3, max_steps=steps, effective_batch=16))
    return run


def merged(run: Path, planted: str):
    model = run_model(run)
    for layer in model.modules():
        if planted == "LoRA at half strength" and hasattr(layer, "lora_A"):
            layer.scaling = {name: 0.5 * scale for name, scale in layer.scaling.items()}
    return merge_adapter(model).to(torch.bfloat16 if planted == "merged in bfloat16" else torch.float32)


def write(folder: Path, file: Path, planted: str) -> None:
    name, wrong = WRITERS.get(planted) or ("add_name", lambda add: add)
    with patch.object(gguf.GGUFWriter, name, wrong(getattr(gguf.GGUFWriter, name))):
        write_gguf(folder, file, "f16")


def run(point: dict, quick: bool) -> dict:
    stage = trained(point["steps"])
    tok, model, rows = load_tokenizer(stage), run_model(stage), appointments(2 if quick else 8, part="test")
    asked = [chat[:-1] for chat in rows["messages"]]
    expected = generate(model, tok, asked, LONGEST)
    answers = []

    class Client(LlamaServer):
        "A server that is asked with text, and so makes the ids of the prompt itself."

        def next_tokens(self, ids, max_new_tokens, top=0):
            found = super().next_tokens(self.token_ids(tok.decode(ids)), max_new_tokens, top)
            answers.append(tok.decode(found[0], skip_special_tokens=True))
            return found

    with tempfile.TemporaryDirectory() as folder:
        merged(stage, point["planted"]).save_pretrained(folder)
        tok.save_pretrained(folder)
        file = Path(folder, "model.gguf")
        write(Path(folder), file, point["planted"])
        with llama_server(file, exact=True) as server:
            client = Client(server.url, server.client)
            parity = answer_parity(model, client, encode_prompts(model, tok, asked, LONGEST), LONGEST)
        found = check_export(model, folder, file, "f16", rows, max_new_tokens=LONGEST, allow=KINDS)["allowed"]
    return {
        "equal": sum(ours == theirs for ours, theirs in zip(expected, answers)),
        "rows": len(rows),
        "kl": float(f"{parity.kl:.2g}"),
        "largest": float(f"{parity.largest:.2g}"),
        "found": list(dict.fromkeys(finding.partition(":")[0] for finding in found)),
    }


if __name__ == "__main__":
    points = [{"steps": steps, "planted": name} for steps in (8, 16) for name in (*WRITERS, *MERGED)]
    measure(__file__, points, run, SETTINGS, __doc__)
