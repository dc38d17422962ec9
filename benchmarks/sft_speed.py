"""`sft_trainer` beside what a user would run instead: tokens a second of LoRA on SmolLM2, memory, and the physical
bound.

    python benchmarks/sft_speed.py                                   # the built-in task; about 15 minutes on two cores
    python benchmarks/sft_speed.py --data instruction-data.json      # any file that read_chats takes
    python benchmarks/sft_speed.py --variants ours,c --rounds 5 --threads 1
    python benchmarks/sft_speed.py --random 0.5                      # random weights, 0.5 billion of them: for a GPU

Each variant trains the same rows, 16 a step, an adapter of rank 16 on all linear layers, in turns in one process: every
variant once is a round, a round has rows of its own, and each run begins with the base anew. A rate is real tokens,
padding left out, from the end of a run's first optimizer step to the end of its last, by the clock and by the CPU
seconds of the process; the median of the rounds and their range. Ratios are formed within a round. `sft_trainer` is
also run with one optimization off at a time, for its share. Then each variant, those aside, trains two steps in a
process of its own, for its peak memory (VmHWM, imports and all; on a GPU what CUDA allocated) and the time from the
start of the process to the end of the first step, with the files in the page cache.

The bound is the FLOPs of a step, counted by formula, over the best rate at which this machine multiplies matrices of
this model's shapes, measured in each round. Printed is the table of README.md; `--out FOLDER` has the figures behind it
as sft_speed.json, and the bars as sft_speed.png. What should be equal is checked, and the exit status is 1 if it is
not. The CUDA paths have not been run on a GPU yet.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROWS, RATE, NOISE = (
    16,
    2e-4,
    0.02,
)  # rows of a step; learning rate; how far bfloat16 may move the loss of a step, in nats
NAMES = {
    "a": "guide's script, messages: trains all tokens",
    "a'": "guide's script, prompt and completion",
    "b": "`trl sft`",
    "b packed": "`trl sft --packing`",
    "c": "hand-written loop, the same optimizations",
    "ours": "`sft_trainer`",
}
OFF = {  # `sft_trainer` with one off: overrides, or a name of `ft_notebooks.kernels.patching.optimizations`
    "padded": {"padding_free": False},
    "without attention by document": "attention",
    "without one node a LoRA layer": "lora",
    "without the head's optimization": "head",
    "with activation checkpointing": {"gradient_checkpointing": True},
    "in float32": {"bf16": False, "bits": 32},
}
IN_ORDER = "ours in order"  # for the losses alone
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock:
    "Wall and CPU seconds at the end of each step, and what was trained in it."

    def __init__(self):
        self.steps, self.began, self.open = [], None, [0, 0, 0.0]  # of the step that runs: tokens, labels, loss

    def micro(self, ids, labels, mask=None) -> None:
        self.began = self.began or time.time()
        self.open[0] += ids.numel() if mask is None else mask.sum()
        self.open[1] += (labels[..., 1:] != -100).sum()

    def end(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        tokens, labels, loss = self.open
        now = time.perf_counter(), time.process_time(), time.time()
        self.steps.append((*now, int(tokens), int(labels), float(loss)))
        self.open = [0, 0, 0.0]

    def found(self) -> dict:
        wall, cpu, _, tokens, labels, losses = map(list, zip(*self.steps))
        rest, seconds, cpu = sum(tokens[1:]), wall[-1] - wall[0], cpu[-1] - cpu[0]
        rates = {"wall": rest / seconds, "cpu": rest / cpu, "seconds": seconds} if len(wall) > 1 else {}
        return {"tokens": sum(tokens), "labels": sum(labels), "losses": losses, **rates}

    def watch(self, trainer):
        "The trainer, whose steps are seen from now on."
        from transformers import TrainerCallback

        clock, step = self, trainer.training_step

        class Ends(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                clock.end()

        def counted(model, inputs, *args, **kwargs):
            clock.micro(inputs["input_ids"], inputs["labels"], inputs.get("attention_mask"))
            loss = step(model, inputs, *args, **kwargs)
            clock.open[2] += loss.detach()
            return loss

        trainer.training_step = counted
        trainer.add_callback(Ends())
        return trainer


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def lora(model):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=LINEAR
    )
    return get_peft_model(model, config)


def rounded(folder: str):
    "The base in float32, with the numbers that it has in bfloat16, so that losses can be compared."
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    return model


def guide(rows: Path, folder: str, clock: Clock, out: str, pairs: bool = False) -> None:
    "The script of a popular guide, with the four arguments renamed that stop it: float32 on a CPU, bfloat16 on a GPU."
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    same = {"train_sampling_strategy": "sequential"} if pairs else {"warmup_steps": 0.05, "lr_scheduler_type": "cosine"}
    args = SFTConfig(
        out,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ROWS // 2,
        learning_rate=RATE,
        max_length=2048,
        bf16=cuda,
        use_cpu=not cuda,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **same,
    )
    trainer = SFTTrainer(
        model=lora(rounded(folder)),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list(read(rows, "pairs" if pairs else "messages")),
    )
    if pairs:  # TRL trains the line break after the end token too: one label a row, taken out for the comparison
        encoded = read(rows, "encoded")
        assert [row["input_ids"] for row in trainer.train_dataset] == [row["input_ids"] for row in encoded]
        trainer.train_dataset = Dataset.from_list(encoded)
    clock.watch(trainer).train()


def command(rows: Path, folder: str, clock: Clock, out: str, packing: bool = False) -> None:
    """The script behind `trl sft` with its defaults; a step has 16 rows, or with packing about as many tokens in packs
    of 1024.
    """
    import torch
    import trl
    from trl.scripts import sft

    words = [
        "--model_name_or_path",
        folder,
        "--dataset_name",
        str(rows / "trl"),
        "--output_dir",
        out,
        "--use_peft",
        "--lora_target_modules",
        "all-linear",
        "--learning_rate",
        str(RATE),
        "--num_train_epochs",
        "1",
        "--save_strategy",
        "no",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--use_cpu",
        str(not torch.cuda.is_available()),
    ]
    if packing:
        packs = sum(len(row["input_ids"]) for row in read(rows, "encoded")[:ROWS]) / 1024
        words += ["--packing", "--per_device_train_batch_size", "1"]
        words += ["--gradient_accumulation_steps", str(max(1, round(packs)))]
    else:
        words += ["--gradient_accumulation_steps", str(ROWS // 8)]

    class Watched(trl.SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            clock.watch(self)

    given, trl.SFTTrainer = trl.SFTTrainer, Watched
    try:
        sft.main(*sft.make_parser().parse_args_and_config(words, fail_with_unknown_args=False))
    finally:
        trl.SFTTrainer = given


def ours(rows: Path, folder: str, clock: Clock, out: str, off: str = "", bits: int = 0, **overrides) -> None:
    "`sft_trainer` on chats, with its defaults, or without one optimization of `ft_notebooks.kernels.patching`."
    from functools import partial

    from datasets import Dataset

    from ft_notebooks.core.device import hardware
    from ft_notebooks.loading.quantized_loading import load_model
    from ft_notebooks.lora.adapter import add_adapter, lora_config
    from ft_notebooks.sft import trainer as sft
    from ft_notebooks.tokenization.padding import load_tokenizer

    model = load_model(folder, bits or (16 if hardware().bf16 else 32))
    model = add_adapter(model, lora_config(model))
    quiet = {"num_train_epochs": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    same = {"learning_rate": RATE}  # as in the other variants
    chats = Dataset.from_list(read(rows, "messages"))
    given = sft.speed_up, sft.LabelHead
    try:
        assert not off or off in sft.optimizations(model)
        if off == "head":
            sft.LabelHead = lambda model, **_: model
        elif off:
            sft.speed_up = partial(sft.speed_up, off=(off,))
        trainer = sft.sft_trainer(model, load_tokenizer(folder), chats, output_dir=out, **quiet, **same, **overrides)
        clock.watch(trainer).train()
    finally:
        sft.speed_up, sft.LabelHead = given


def hand(rows: Path, folder: str, clock: Clock, out: str) -> None:
    """No Trainer, no PEFT forward, the kernels of `ft_notebooks.kernels`: the rows of a step as one,
    without padding.
    """
    import torch
    from peft.tuners.lora import Linear
    from transformers import AttentionInterface, AutoModelForCausalLM

    from ft_notebooks.core.device import hardware
    from ft_notebooks.kernels.attention import document_attention
    from ft_notebooks.kernels.fused_layers import lora_linear
    from ft_notebooks.kernels.log_probs import label_log_probs

    def attention(module, query, key, value, mask, cu_seq_lens_q=None, **kwargs):
        return document_attention(module, query, key, value, cu_seq_lens_q, **kwargs)

    AttentionInterface.register("by hand", attention)
    hw = hardware()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=hw.dtype, attn_implementation="by hand")
    model = lora(model).to(hw.device).train()
    for layer in model.modules():
        if isinstance(layer, Linear):
            adapter = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.scaling["default"]
            parts = layer.base_layer.weight, layer.base_layer.bias, *adapter
            layer.forward = lambda x, parts=parts: lora_linear(x, *parts)
    body, head = model.get_base_model().model, model.get_output_embeddings().weight
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    encoded = read(rows, "encoded")
    count = -(-len(encoded) // ROWS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / count)
    for start in range(0, len(encoded), ROWS):
        batch = encoded[start : start + ROWS]
        ids = torch.tensor([token for row in batch for token in row["input_ids"]], device=hw.device)
        labels = torch.tensor([label for row in batch for label in (-100, *row["labels"][1:])], device=hw.device)
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        positions = torch.cat([torch.arange(n) for n in lengths]).to(hw.device)
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        clock.micro(ids, labels)
        hidden = body(ids[None], position_ids=positions[None], use_cache=False, cu_seq_lens_q=ends).last_hidden_state[0]
        places = (labels[1:] != -100).nonzero().flatten()
        hidden, targets = hidden[places], labels[places + 1]
        if hw.device == "cpu":
            loss = -label_log_probs(hidden, head, targets)[0].mean()
        else:
            loss = torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.open[2] += loss.detach()
        clock.end()


def variants() -> dict:
    "What is run, by its short name."
    from functools import partial

    off = {name: {"off": how} if isinstance(how, str) else how for name, how in OFF.items()}
    off = {f"ours {name}": partial(ours, **how) for name, how in off.items()}
    return {
        "a": guide,
        "a'": partial(guide, pairs=True),
        "b": command,
        "b packed": partial(command, packing=True),
        "c": hand,
        "ours": ours,
        **off,
        IN_ORDER: partial(ours, train_sampling_strategy="sequential"),
    }


def run(name: str, rows: Path, folder: str) -> dict:
    "One run of a variant from the base on, silent."
    clock, said = Clock(), io.StringIO()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        variants()[name](rows, folder, clock, out)
    return clock.found() | {"began": clock.began, "first": clock.steps[0][2]}


def child(name: str, rows: Path, folder: str, start: float) -> dict:
    "In a process of its own: peak memory, and the seconds from the start of the process."
    import torch
    from memory_watch import held

    found = run(name, rows, folder)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else held("VmHWM")[0]
    return {"peak": peak, "ready": found["began"] - start, "first": found["first"] - start}


def apart(name: str, rows: Path, folder: str) -> dict:
    words = [sys.executable, __file__, "--child", name, str(rows), folder, str(time.time())]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"in a process of its own: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(rows, encoded, folder: Path) -> dict:
    "The rows in the form that each variant takes; what is in them."
    (folder / "trl").mkdir(parents=True)
    chats = [{"messages": row["messages"]} for row in rows]
    pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    for name, lines in {"messages": chats, "pairs": pairs, "trl/train": pairs, "encoded": list(encoded)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lengths = [len(ids) for ids in encoded["input_ids"]]
    labels = sum(label != -100 for row in encoded["labels"] for label in row[1:])
    return {"rows": len(rows), "tokens": sum(lengths), "labels": labels, "squares": sum(n * n for n in lengths)}


def flops(size: dict, config, body: int, adapter: int) -> float:
    """Of training `size`, by formula, in FLOPs.

    Body and adapter: 2 a weight and token forward, 2 for the activations' gradient, and 2 more for the adapter's own.
    Head:
    2 forward and 2 backward a weight, where a label is. Attention: two products forward, four backward, half of each
    masked.
    """
    head = 4 * config.hidden_size * config.vocab_size * size["labels"]
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 6 * config.num_hidden_layers * width * size["squares"]
    return (4 * body + 6 * adapter) * size["tokens"] + head + attention


def products(config, size: dict, steps: int, dtypes) -> dict:
    "FLOPs a second, by the clock and by CPU time, of this model's products: the best of five."
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    h, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    t, n = size["tokens"] // steps, size["labels"] // steps
    found = {}
    for dtype in dtypes:
        for rows, a, b in ((t, h, h), (t, h, inner), (t, inner, h), (n, h, vocab), (1024, h, inner)):
            x, y = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, a), (a, b)))
            best = {"wall": 0.0, "cpu": 0.0}
            work = 2.0 * rows * a * b
            times = max(1, int(5e9 / work)) if device == "cpu" else 20
            for _ in range(5):
                wait()
                start = time.perf_counter(), time.process_time()
                for _ in range(times):
                    x @ y
                wait()
                passed = time.perf_counter() - start[0], time.process_time() - start[1]
                best = {kind: max(best[kind], times * work / s) for kind, s in zip(best, passed)}
            found[f"[{rows}, {a}] x [{a}, {b}] {str(dtype)[6:]}"] = best
    return found


def random_model(billions: float, folder: Path) -> str:
    "A Llama with random weights of about this size, beside SmolLM2's tokenizer, saved in bfloat16."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from ft_notebooks.loading.example_models import smollm2

    tok = AutoTokenizer.from_pretrained(smollm2())
    layers, width = 24, max(128, round((billions * 1e9 / 24 / 12) ** 0.5 / 64) * 64)
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=tok.bos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in info.splitlines())}
    words = about.get("model name", "CPU"), about.get("cpu family"), about.get("model")
    bf16 = "with" if "avx512_bf16" in about.get("flags", "") else "without"
    return "{}, family {} model {}, {} avx512_bf16".format(*words, bf16) + f", {torch.get_num_threads()} thread(s)"


def spread(values: list[float], form: str = ",.0f") -> str:
    "The median, and the range of the rounds."
    if not values:
        return "–"
    middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def measure(options, names: list[str], folder: str, work: Path, save) -> dict:
    "All rounds, then a process for each variant; what fails is kept as its message, and the rest goes on."
    import datasets
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from ft_notebooks.core.device import hardware
    from ft_notebooks.course.example_task import appointments
    from ft_notebooks.data.chat_encoding import encode_chats
    from ft_notebooks.data.read import read_chats

    datasets.disable_progress_bars()
    count, dtype = ROWS * options.steps, hardware().dtype
    rows = read_chats(options.data) if options.data else appointments(count * options.rounds)
    if len(rows) < count * options.rounds:
        raise SystemExit(
            f"{options.rounds} rounds of {options.steps} steps need {count * options.rounds} rows, not {len(rows)}"
        )
    rows, tok, config = (
        rows.shuffle(seed=options.seed),
        AutoTokenizer.from_pretrained(folder),
        AutoConfig.from_pretrained(folder),
    )
    found = {
        "machine": machine(),
        "dtype": str(dtype)[6:],
        "rounds": options.rounds,
        "steps": options.steps,
        "seed": options.seed,
    }
    found |= {"sizes": [], "products": [], "bound": [], "runs": {name: [] for name in names}, "own": {}, "failed": {}}

    def attempt(name, run, *given):
        began, result = time.time(), None
        try:
            result = None if name in found["failed"] else run(name, *given)
        except Exception as e:
            traceback.print_exc()
            found["failed"][name] = f"{type(e).__name__}: {e}"
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        print(f"{name}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)
        return result

    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        part = rows.select(range(number * count, (number + 1) * count))
        size = write(part, encode_chats(tok, part)[0], work / str(number))
        rates = products(config, size, options.steps, dict.fromkeys([dtype, torch.float32]))
        each = flops(size, config, *weights(folder)) / size["tokens"]
        best = {
            k: max(rate[k] for name, rate in rates.items() if name.endswith(found["dtype"])) for k in ("wall", "cpu")
        }
        found["sizes"].append(size | {"flops_per_token": each})
        found["products"].append(rates)
        found["bound"].append({k: rate / each for k, rate in best.items()})
        for name in names:
            found["runs"][name].append(attempt(name, run, work / str(number), folder))
            save(found)
    print("each in a process of its own", file=sys.stderr, flush=True)
    two = rows.select(range(2 * ROWS))
    write(two, encode_chats(tok, two)[0], work / "two")
    found["own"] = {name: attempt(name, apart, work / "two", folder) for name in names if name in NAMES}
    save(found)
    return found


def weights(folder: str) -> tuple[int, int]:
    "How many weights the linear layers of the body have, and their adapter."
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    linear = [
        m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name.split(".")[-1] in LINEAR
    ]
    return sum(m.weight.numel() for m in linear), sum(16 * sum(m.weight.shape) for m in linear)


def ratios(found: dict, top: str, bottom: str, kind: str) -> list[float]:
    pairs = zip(found["runs"].get(top, []), found["runs"].get(bottom, []))
    return [a[kind] / b[kind] for a, b in pairs if a and b]


def label(name: str) -> str:
    return NAMES.get(name) or f"`sft_trainer`, {name.partition(' ')[2]}"


def table(found: dict) -> str:
    "The markdown of README.md."
    head = (
        "variant",
        "trained of 100 tokens",
        "tokens / s",
        "tokens / CPU s",
        "ours / it",
        "ours / it, CPU s",
        "of the bound",
        "CPU s",
    )
    lines = [f"| {' | '.join(head)} | peak MB | first step after s |", "|---" * 10 + "|"]
    for name, runs in found["runs"].items():
        done = [run for run in runs if run]
        if name == IN_ORDER or not done:
            continue
        share = {k: [run[k] / bound[k] for run, bound in zip(runs, found["bound"]) if run] for k in ("wall", "cpu")}
        own = found["own"].get(name)
        cells = [
            label(name),
            f"{100 * done[0]['labels'] / done[0]['tokens']:.0f}",
            spread([run["wall"] for run in done]),
            spread([run["cpu"] for run in done]),
            spread(ratios(found, "ours", name, "wall"), ".2f"),
            spread(ratios(found, "ours", name, "cpu"), ".2f"),
            spread(share["wall"], ".0%"),
            spread(share["cpu"], ".0%"),
            f"{own['peak'] / 1e6:,.0f}" if own else "–",
            f"{own['first']:.1f}" if own else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    wall, cpu = (spread([bound[kind] for bound in found["bound"]]) for kind in ("wall", "cpu"))
    lines.append(f"| bound: {found['dtype']} products alone | | {wall} | {cpu} | | | 100% | 100% | | |")
    return "\n".join(lines)


def product_table(found: dict) -> str:
    lines = ["| product | GFLOP / s | GFLOP / CPU s |", "|---|---|---|"]
    for place, name in enumerate(found["products"][0]):
        rates = [list(each.values())[place] for each in found["products"]]
        lines.append(
            f"| {name} | " + " | ".join(spread([r[kind] / 1e9 for r in rates]) for kind in ("wall", "cpu")) + " |"
        )
    return "\n".join(lines)


def checks(found: dict) -> list[tuple[str, bool]]:
    "What must be equal, and whether it is."
    out, runs = [], found["runs"]
    for name, each in runs.items():
        pairs = [(run, size) for run, size in zip(each, found["sizes"]) if run]
        out.append((f"{name}: tokens counted are those of the rows", all(r["tokens"] == s["tokens"] for r, s in pairs)))
        if name.startswith("ours") or name in ("a'", "c"):
            out.append(
                (f"{name}: labels counted are those of the rows", all(r["labels"] == s["labels"] for r, s in pairs))
            )
    for name in ("a'", "c"):
        pairs = [(a, b) for a, b in zip(runs.get(IN_ORDER, []), runs.get(name, [])) if a and b]
        if pairs:
            first = max(abs(a["losses"][0] - b["losses"][0]) for a, b in pairs)
            rest = [x - y for a, b in pairs for x, y in zip(a["losses"], b["losses"])]
            mean, error = statistics.mean(rest), statistics.stdev(rest) / len(rest) ** 0.5 if len(rest) > 1 else 0.0
            text = (
                f"ours - {name}, same rows in the same order: first step's loss differs by {first:.4f} at most; "
                f"{len(rest)} steps' "
            )
            text += f"losses by {mean:+.5f} in the mean, standard error {error:.5f}, {max(map(abs, rest)):.4f} at most"
            whole = name == "c"  # in 16 bits; against float32 the steps after the first are reported and not judged
            out.append((text, first < NOISE and (not whole or max(map(abs, rest)) < 3 * NOISE)))
    return out + [(f"{name} failed: {why}", False) for name, why in found["failed"].items()]


def draw(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = {name: [run["wall"] for run in runs if run] for name, runs in found["runs"].items() if name != IN_ORDER}
    rates = {name: each for name, each in rates.items() if each}
    fig, ax = plt.subplots(figsize=(7.5, 0.8 + 0.34 * len(rates)), dpi=100, layout="constrained")
    bound = statistics.median(each["wall"] for each in found["bound"])
    for place, (name, each) in enumerate(rates.items()):
        middle = statistics.median(each)
        ax.barh(
            place,
            middle,
            color="#0072B2" if name.startswith("ours") else "#E69F00" if name == "c" else "#999999",
            height=0.7,
        )
        ax.plot([min(each), max(each)], [place, place], color="black", lw=1.5)
        ax.text(max(each) + bound * 0.012, place, f"{middle:,.0f}", va="center", fontsize=8)
    ax.axvline(bound, color="#D55E00", ls="--", lw=1.2)
    ax.text(
        bound * 0.985, len(rates) - 0.6, f"bound {bound:,.0f}", color="#D55E00", ha="right", va="bottom", fontsize=8
    )
    ax.set(yticks=range(len(rates)), xlabel="real tokens a second (bar: median of the rounds, line: their range)")
    ax.set_yticklabels([label(name).replace("`", "") for name in rates], fontsize=8)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path)


def main(options) -> int:
    names = list(variants())
    chosen = options.variants.split(",") if options.variants else names[:-1]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise SystemExit(f"no variant {unknown[0]!r}; there are {', '.join(names[:-1])}")
    if "ours" in chosen and {"a'", "c"} & set(chosen):
        chosen.append(IN_ORDER)
    out, load, began = Path(options.out), os.getloadavg()[0], time.time()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = f"{work}/datasets"
        from ft_notebooks.loading.example_models import smollm2

        folder = (
            random_model(options.random, Path(work, "model")) if options.random else str(options.model or smollm2())
        )
        found = measure(
            options,
            chosen,
            folder,
            Path(work),
            lambda found: (out / "sft_speed.json").write_text(json.dumps(found, indent=1)),
        )
    draw(found, out / "sft_speed.png")
    tokens, rows = (sum(size[key] for size in found["sizes"]) for key in ("tokens", "rows"))
    print(
        f"{found['machine']}; load average {load:.1f} before; {options.rounds} round(s) of {options.steps} steps of "
        f"{ROWS} rows,"
    )
    print(f"{tokens / rows:.0f} tokens a row; {time.time() - began:.0f} s in all\n")
    print(table(found) + "\n\n" + product_table(found) + "\n")
    results = checks(found)
    for text, good in results:
        print(f"{'ok  ' if good else 'NOT '} {text}")
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, rows, folder, start = sys.argv[2:]
        print(json.dumps(child(name, Path(rows), folder, float(start))))
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file that read_chats takes; the built-in task without it")
    parser.add_argument(
        "--steps", type=int, default=3, help="optimizer steps of 16 rows a run; the first is not counted"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="all cores by default")
    parser.add_argument("--variants", help=f"some of them, with commas: {', '.join(list(variants())[:-1])}")
    parser.add_argument("--model", help="a folder; SmolLM2 without it")
    parser.add_argument("--random", type=float, metavar="SIZE", help="random weights instead, in billions")
    parser.add_argument("--seed", type=int, default=0, help="which rows")
    parser.add_argument("--out", default=".", help="the folder of sft_speed.json and sft_speed.png")
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported; the children inherit it
    raise SystemExit(main(options))
