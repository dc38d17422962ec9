"""What is measured of each family, each beside a reference that does not use what it checks

A cell is a function of a `Case`: it returns a figure, which is right up to the cell's bound, and a remark. It raises
`Unsupported` where the library below cannot do it.
"""

import dataclasses
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import accumulate

import bitsandbytes as bnb
import torch
import trl
from architectures import Family
from case import SETTINGS, Case, Watch, far, furthest, label_log_probs, logits, losses, mean_loss, moved
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from thinking import differences
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig, set_seed

from ft_notebooks.data.chat_encoding import check_end_token, encode_chat
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.parity import PROSE, answer_parity, text_parity
from ft_notebooks.inference.generation import generate
from ft_notebooks.inference.llama_cpp import llama_server
from ft_notebooks.kernels.label_head import LabelHead
from ft_notebooks.kernels.patching import optimizations, speed_up
from ft_notebooks.loading.memory_estimate import estimate_memory
from ft_notebooks.lora.adapter import load_adapter, merge_adapter
from ft_notebooks.lora.default_targets import unadapted
from ft_notebooks.lora.published_names import write_published
from ft_notebooks.rlhf.grpo import grpo_trainer
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.run import fit

Figure = tuple[float, str]  # what was measured, and a remark, which may be empty


class Unsupported(Exception):
    "Why there is nothing to measure."


@dataclasses.dataclass(frozen=True)
class Cell:
    "A column of the table."

    name: str
    says: str  # what the figure is
    against: str  # the reference
    bound: float  # the largest figure that is right
    measure: Callable[[Case], Figure]
    applies: Callable[[Family], bool]


CELLS: dict[str, Cell] = {}


def cell(bound: float, against: str, applies: Callable[[Family], bool] = lambda family: True):
    "Makes a function a column; its docstring says what the figure is."

    def register(measure: Callable[[Case], Figure]):
        name = measure.__name__.replace("_", " ")
        CELLS[name] = Cell(name, str(measure.__doc__), against, bound, measure, applies)
        return measure

    return register


# data: the family's chat template

_SINGLE = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
]
_TWO_TURNS = [*_SINGLE, {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "That makes 6."}]


def _trained_texts(tok, chat: list[dict]) -> list[str]:
    "The text of each stretch of labels."
    found, before = [], IGNORE
    for label in encode_chat(tok, chat)["labels"]:
        if label != IGNORE and before == IGNORE:
            found.append([])
        if label != IGNORE:
            found[-1].append(label)
        before = label
    return [tok.decode(ids) for ids in found]


@cell(0, "the words of the answers: nothing else but the template's marks may be trained")
def masks(case: Case) -> Figure:
    "Answers of one and of two turns whose labels are not the answer and a mark that ends it."
    tok, wrong, seen = case.family_tok, [], 0
    for chat in (_SINGLE, _TWO_TURNS):
        answers = [message["content"] for message in chat if message["role"] == "assistant"]
        texts = _trained_texts(tok, chat)
        seen += len(answers)
        for answer, text in zip(answers, texts):
            before, found, after = text.partition(answer)
            has_words = re.search(r"[A-Za-z]{2,}", re.sub(r"<[^<>]*>|final", "", before + after))
            if not found or has_words or not after.strip():
                wrong.append(text)
        wrong += texts[len(answers) :] + answers[len(texts) :]
    return len(wrong), f"{seen} answers" if not wrong else f"trained: {wrong[0]!r}"


@cell(0, "the id at which the family's models stop")
def end_token(case: Case) -> Figure:
    "Conversations whose last label is not the token at which generation stops."
    tok = case.family_tok
    config = GenerationConfig(eos_token_id=tok.eos_token_id)
    check_end_token(tok, config)
    labels = [encode_chat(tok, chat)["labels"] for chat in (_SINGLE, _TWO_TURNS)]
    ends = [[label for label in row if label != IGNORE][-1] for row in labels]
    return sum(end != tok.eos_token_id for end in ends), " and ".join(dict.fromkeys(map(tok.decode, ends)))


@cell(0, "the prompt that the template renders in use")
def thinking(case: Case) -> Figure:
    "Answers, with and without thoughts, before which training shows another text than use does, unsaid."
    found = differences(case.family_tok)
    return sum(one.silent for one in found), "; ".join(str(one) for one in found)


# loading


@cell(1e-5, "the model as transformers made it, before it was saved")
def load(case: Case) -> Figure:
    "Largest difference of a logit after `load_model` in 32 bits."
    model = case.load()
    return far(logits(model, case.ids), logits(case.made, case.ids)), type(model).__name__


def _in_float32(case: Case, quantized) -> torch.nn.Module:
    "The model in float32 whose weights are those that the quantized one stands for, by hand."
    plain = case.load(32)
    named = dict(plain.named_parameters())
    for name, p in quantized.named_parameters():
        if p.is_floating_point() and p.shape == named[name].shape:
            named[name].data = p.detach().float()
    for name, layer in quantized.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        else:
            continue
        named[f"{name}.weight"].data = weight.float()
    return plain


def _quantized(case: Case, bits: int) -> Figure:
    model = case.load(bits)
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    small = sum(math.prod((m.out_features, m.in_features)) for m in model.modules() if isinstance(m, kinds))
    if not small:
        raise Unsupported("bitsandbytes quantizes linear layers alone, and the model has none")
    p = logits(_in_float32(case, model), case.ids).log_softmax(-1)
    try:
        q = logits(model, case.ids).log_softmax(-1)
    except RuntimeError as e:
        if "bitsandbytes" not in traceback.extract_tb(e.__traceback__)[-1].filename:
            raise
        raise Unsupported(f"bitsandbytes on a CPU: {e}") from e
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    whole = sum(p.numel() for p in case.made.parameters())
    trainer = case.trainer(f"bits{bits}", case.adapted(bits), max_steps=1)
    watch = Watch()
    trainer.add_callback(watch)
    fit(trainer)
    dead = [name for name, g in watch.steps[0].items() if "lora_B" in name and not g.any()]
    if dead:
        return math.inf, f"{len(dead)} layers without gradient: {dead[0]}"
    return kl, f"{small / whole:.0%} of the weights in {bits} bits"


@cell(0.02, "float32 with the weights dequantized by hand")
def four_bits(case: Case) -> Figure:
    "KL of the next token in nats; a step gives each adapted layer a gradient."
    return _quantized(case, 4)


@cell(0.05, "float32 with the weights dequantized by hand")
def eight_bits(case: Case) -> Figure:
    "KL of the next token in nats; a step gives each adapted layer a gradient."
    return _quantized(case, 8)


# the adapter


@cell(0, "all weights of two dimensions and more in the model, beside embeddings and head")
def targets(case: Case) -> Figure:
    "Matrices without an adapter by default that `unadapted` does not name, and adapters outside the text model."
    names = [name for name, _ in case.adapted().named_parameters() if "lora_A" in name]
    paths = [name.partition(".lora_A")[0].removeprefix("base_model.model.") for name in names]
    adapted = Counter(path.replace(".base_layer", "") for path in paths)  # experts: one for each of their tensors
    plain = case.load()
    named = unadapted(plain)
    silent, reasons = [], {}
    for path, module in plain.named_modules():
        matrices = [n for n, p in module.named_parameters(recurse=False) if p.ndim >= 2 and "bias" not in n]
        is_table = module is plain.get_output_embeddings() or isinstance(module, torch.nn.Embedding)
        if is_table or adapted[path] >= len(matrices):
            continue
        for full in (f"{path}.{name}" for name in matrices):
            layer = re.sub(r"\.\d+\.", ".N.", full)
            if full in named:
                reasons[layer] = named[full]
            else:
                silent.append(layer)
    towers = [path for path in adapted if re.search(r"vision|visual|audio|multi_modal|projector", path)]
    said = [f"misses {', '.join(dict.fromkeys(silent))}"] if silent else []
    said += [f"{len(towers)} adapters outside the text model, first {min(towers)}"] if towers else []
    said += [f"{layer}: {reason}" for layer, reason in reasons.items()]
    return len(silent) + len(towers), "; ".join(said)


@cell(0, "the gradients before each optimizer step")
def gradient_flow(case: Case) -> Figure:
    "Tensors of the adapter that have had no gradient after three steps."
    best = Counter()
    for step in case.run.watch.steps:
        for name, g in step.items():
            best[name] = max(best[name], g.abs().max().item())
    dead = sorted(name for name in best if not best[name] > 0)
    parts = Counter(name.partition(".lora_")[0].rpartition(".")[2] for name in best)
    return len(dead), f"none at {dead[0]}" if dead else ", ".join(f"{n} {part}" for part, n in parts.items())


# training


@cell(5e-4, "plain trl.SFTTrainer on padded rows")
def sft(case: Case) -> Figure:
    "Largest difference of three losses, and of the first gradient as a share."
    run = case.run
    plain = case.plain_trainer(run.trainer, "plain")
    watch = Watch()
    plain.add_callback(watch)
    plain.train()
    by_loss = max(abs(a - b) for a, b in zip(run.losses, losses(plain)))
    by_gradient = furthest(run.watch.steps[0], watch.steps[0])
    return max(by_loss, by_gradient), f"losses {by_loss:.1e}, gradient {by_gradient:.1e}"


_WITHOUT_AUXILIARY = {"router_aux_loss_coef": 0.0}  # the logged loss of experts is then that of the labels alone


@cell(1e-4, "the mean over the labels of four rows, one by one")
def batch_plan(case: Case) -> Figure:
    "Largest difference of the first loss, as 4 x 1 and as 1 x 4."
    rows = case.rows.select(range(4))
    expected = mean_loss(case.load(), rows)
    found = {}
    for size in (4, 1):
        given = {"max_steps": 1, "per_device_train_batch_size": size} | _WITHOUT_AUXILIARY
        trainer = case.trainer(f"plan{size}", rows=rows, **given)
        fit(trainer)
        found[f"{size} x {4 // size}"] = losses(trainer)[0]
    return max(abs(loss - expected) for loss in found.values()), ", ".join(f"{k}: {v:.4f}" for k, v in found.items())


@cell(1e-4, "the mean over the labels of all rows, one by one")
def evaluation_loss(case: Case) -> Figure:
    "Difference of `eval_loss`."
    rows = case.rows.select(range(5))
    found = case.trainer("evaluated", eval_dataset=rows).evaluate()["eval_loss"]
    return abs(found - mean_loss(case.load(), rows)), f"{found:.4f}"


@cell(1e-4, "each document alone")
def documents(case: Case) -> Figure:
    "Largest difference of a logit in a packed row."
    packed = {"packing": True, "max_length": 220, "per_device_train_batch_size": 1, "effective_batch": 2}
    trainer = case.trainer("packed", moved(case.adapted()), **packed)
    batch = {key: x for key, x in next(iter(trainer.get_train_dataloader())).items() if key != "labels"}
    trainer.model.eval()
    with torch.no_grad(), speed_up(trainer.model):
        together = trainer.model(**batch, use_cache=False).logits[0].float()
    ids, places = batch["input_ids"][0].tolist(), batch["position_ids"][0]
    starts = [*(places == 0).nonzero().flatten().tolist(), len(ids)]
    pieces = [(a, b) for a, b in zip(starts, starts[1:]) if b - a > 1]
    return max(far(together[a:b], logits(trainer.model, ids[a:b])) for a, b in pieces), f"{len(pieces)} documents"


# few tokens are sampled where answers are short
_SHORT, _OTHER = ({"role": "assistant", "content": text} for text in ("yes", "I do not know"))


@cell(1e-3, "the log-probabilities of each answer, one by one")
def dpo(case: Case) -> Figure:
    "Largest difference of a mean log-probability of chosen and rejected, and of the first loss from ln 2."
    asked = [chat[:-1] for chat in case.chats.select(range(4))["messages"]]
    pairs = [{"prompt": prompt, "chosen": [_SHORT], "rejected": [_OTHER]} for prompt in asked]
    given = SETTINGS | {"max_steps": 1, "output_dir": str(case.folder / "dpo")} | _WITHOUT_AUXILIARY
    trainer = dpo_trainer(case.adapted(), case.tok, pairs, **given)
    fit(trainer)
    logged = next(entry for entry in trainer.state.log_history if "logps/chosen" in entry)
    base, apart = case.load(), []
    for key in ("chosen", "rejected"):
        total = 0.0
        for pair in pairs:
            row = encode_chat(case.tok, pair["prompt"] + pair[key])
            total += label_log_probs(base, row).sum().item()
        apart.append(abs(logged[f"logps/{key}"] - total / len(pairs)))
    from_ln2 = abs(losses(trainer)[0] - math.log(2))
    return max(*apart, from_ln2), f"log-probabilities {max(apart):.1e}, loss {from_ln2:.1e}"


def _vowels(completions, **columns) -> list[float]:
    "A reward with spread."
    texts = [answer[0]["content"] for answer in completions]
    return [float(len(text) + sum(c in "aeiou" for c in text)) for text in texts]


@cell(1e-3, "plain trl.GRPOTrainer, which repeats each prompt")
def grpo(case: Case) -> Figure:
    "Largest difference of the first gradient, as a share."
    rows = Dataset.from_list([{"messages": [*chat[:-1], _SHORT]} for chat in case.chats.select(range(2))["messages"]])
    given = {k: v for k, v in SETTINGS.items() if k not in ("effective_batch", "per_device_train_batch_size")}
    given |= {"max_steps": 1, "max_completion_length": 12, "prompts_a_step": 2, "generations": 3}
    given |= {"per_device_train_batch_size": 6, "output_dir": str(case.folder / "grpo")}

    def length(generated, expected, example):
        return _vowels([[{"content": generated}]])[0]

    ours = grpo_trainer(moved(case.adapted()), case.tok, rows, length, **given)
    changed = {"output_dir": str(case.folder / "plain-grpo"), "save_strategy": "no", "generation_batch_size": None}
    args = dataclasses.replace(ours.args, **changed)
    plain = trl.GRPOTrainer(
        moved(case.adapted()), _vowels, args, train_dataset=ours.train_dataset, processing_class=case.tok
    )
    found = []
    for trainer, train in ((ours, lambda: fit(ours)), (plain, plain.train)):
        watch = Watch()
        trainer.add_callback(watch)
        set_seed(0)
        train()
        found.append(watch.steps[0])
    size = max(g.abs().max().item() for g in found[1].values())
    apart = max(far(found[0][name], g) for name, g in found[1].items()) / size
    return apart, "prompts computed once" if ours.shares else "each prompt computed with each answer"


@cell(1e-4, "the model without them")
def our_optimizations(case: Case) -> Figure:
    "Largest difference of the loss, and of a gradient as a share."
    model = moved(case.adapted()).train()
    off = {name: reason for name, reason in optimizations(model).items() if reason}
    ids, labels = ([row[key] for row in case.rows.select(range(2))] for key in ("input_ids", "labels"))
    size = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([row + [0] * (size - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in ids]),
    }
    targets = torch.tensor([row + [IGNORE] * (size - len(row)) for row in labels])

    def by_hand():
        said = model(**batch, use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(said.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE)

    def with_head():
        return LabelHead(model)(**batch, labels=targets, fused_lm_head=True).loss

    def step(loss):
        model.zero_grad()
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, gradient = step(by_hand())
    with speed_up(model):
        fast, fast_gradient = step(by_hand() if "head" in off else with_head())
    said = "; ".join(f"without {name}: {reason}" for name, reason in off.items())
    return max(abs(loss - fast), furthest(fast_gradient, gradient)), said


@cell(0, "the run that nobody stopped")
def resume(case: Case) -> Figure:
    "Largest difference of a weight after three steps, stopped at the second and resumed."
    ends = []
    for name, stops in (("whole", [None]), ("stopped", [2, None])):
        for stop in stops:
            set_seed(5)
            trainer = case.trainer(name, save_steps=1)
            trainer.add_callback(Watch(stop))
            try:
                fit(trainer)
            except KeyboardInterrupt:
                assert trainer.state.global_step == stop, trainer.state.global_step
        ends.append({key: p.detach() for key, p in trainer.model.named_parameters() if "lora_" in key})
    return max(far(ends[1][key], p) for key, p in ends[0].items()), ""


# afterwards


@cell(0, "the run's model, still in memory")
def reload(case: Case) -> Figure:
    "Largest difference of a logit of the saved adapter, loaded onto its base."
    expected = logits(case.run.trainer.model.eval(), case.ids)
    adapted = load_adapter(case.run.folder, 32)
    return far(logits(adapted, case.ids), expected), ""


@cell(5e-5, "the adapter beside its base")
def merge(case: Case) -> Figure:
    "Largest difference of a logit after the merge in float32; each target must change."
    model = case.far_adapter()
    expected = logits(model, case.ids)
    marks = [name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name]
    targets = {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in marks}
    before = dict(case.load().named_parameters())
    merged = merge_adapter(model)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    same = [target for target in targets if not any(name.startswith(f"{target}.") for name in changed)]
    if same:
        return math.inf, f"{len(same)} of {len(targets)} targets are unchanged: {min(same)}"
    return far(logits(merged, case.ids), expected), f"{len(targets)} targets change {len(changed)} tensors"


def _names(folder) -> set[str]:
    found: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {*opened.keys()}
    return found


@cell(5e-5, "the names in the base's folder, except of a wrapper, and plain AutoModelForCausalLM")
def transformers_names(case: Case) -> Figure:
    "Largest difference of a logit of the merged folder; no tensor has another name, and none is left out."
    model = case.far_adapter()
    expected = logits(model, case.ids)
    folder = case.folder / "merged"
    merge_adapter(model).save_pretrained(folder)
    known = _names(folder) if case.family.wrapper else _names(case.base) | {"lm_head.weight"}
    new = _names(folder) - known
    plain, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    if new or lost:
        return math.inf, f"{len(new)} names that the base lacks ({min(new, default='')}), {len(lost)} not loaded"
    return far(logits(plain.eval(), case.ids), expected), f"{len(_names(folder))} tensors"


@cell(5e-5, "the text model with the adapter", applies=lambda family: family.wrapper is not None)
def wrapper_names(case: Case) -> Figure:
    "Largest difference of a logit where the published class gets the adapter by PEFT, and where we load that folder."
    model = case.far_adapter()
    expected = logits(model, case.ids)
    model.save_pretrained(case.folder / "text-names")
    published = case.folder / "published-names"
    write_published(case.folder / "text-names", published)
    whole = AutoModelForImageTextToText.from_pretrained(case.base, dtype=torch.float32).eval()
    served = PeftModel.from_pretrained(whole, str(published)).eval()
    with safe_open(published / "adapter_model.safetensors", "pt") as opened:
        saved = {*opened.keys()}
    own = {name.replace(".default", "") for name, _ in served.named_parameters() if "lora_" in name}
    apart = max(far(logits(one, case.ids), expected) for one in (served, load_adapter(published, 32)))
    return apart, f"{len(saved & own)} of {len(saved)} tensors fit its names"


@cell(1e-3, "the merged model in transformers")
def gguf(case: Case) -> Figure:
    "Largest difference of a log-probability above -8 in llama.cpp, on prose and on greedy answers."
    folder = case.folder / "for-gguf"
    merge_adapter(case.far_adapter()).save_pretrained(folder)
    case.tok.save_pretrained(folder)
    write_gguf(folder, case.folder / "model.gguf", "f32")
    model = case.load_plain(folder)
    prompts = [case.tok(text).input_ids for text in ("The dentist", "on Monday")]
    with llama_server(case.folder / "model.gguf", 256, exact=True) as server:
        answers = answer_parity(model, server, prompts, 8)
        prose = text_parity(model, server, case.tok(PROSE).input_ids[:32])
    return max(answers.largest, prose.largest), f"{answers.tokens + prose.tokens} positions"


@cell(0.25, "the allocator's peak in a step by torch's profiler")
def memory(case: Case) -> Figure:
    "Share by which the estimate of activations, logits and working memory is off."
    batch, length = 4, 256
    model = case.adapted(r=16).train()
    ids = torch.randint(3, 250, (batch, length), generator=torch.Generator().manual_seed(0))
    config = model.peft_config["default"]
    settings = {"batch": batch, "length": length, "bits": 32, "device": "cpu", "dtype": None, "whole_logits": True}
    said = estimate_memory(case.base, "lora", adapter=config, **settings)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    events = profile.profiler.kineto_results.events()
    peak = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    guess = said.copies + said.activations + said.logits + said.working
    return abs(guess / peak - 1), f"estimated {guess / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB"


def _without_cache(model, tok, chat: list[dict], count: int) -> str:
    "The greedy answer, all computed anew for each token."
    ids = list(tok.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    start = len(ids)
    while len(ids) < start + count:
        token = logits(model, ids)[-1].argmax().item()
        if token == tok.eos_token_id:
            break
        ids.append(token)
    return tok.decode(ids[start:], skip_special_tokens=True)


def _chats(case: Case) -> list[list[dict]]:
    "Two with a long common beginning, two of very different length."
    order = {"role": "system", "content": "Answer with the day of the event, and with nothing else."}
    asked = [[order, *messages[:-1]] for messages in case.chats.select(range(2))["messages"]]
    return [*asked, *([{"role": "user", "content": "x" * n}] for n in (1, 60))]


@cell(0, "one by one, and token by token without a cache")
def generation(case: Case) -> Figure:
    "Of four greedy answers in a batch, those that differ."
    model = moved(case.adapted()).eval()
    chats = _chats(case)
    together = generate(model, case.tok, chats, 10, batch_size=4, progress=False)
    alone = generate(model, case.tok, chats, 10, batch_size=1, progress=False)
    plain = [_without_cache(model, case.tok, chat, 10) for chat in chats]
    differ = [a for a, b, c in zip(together, alone, plain) if not a == b == c]
    return len(differ), f"{len({*plain})} different answers"


@cell(0, "token by token without a cache")
def after_full_training(case: Case) -> Figure:
    "Of two answers of a model trained whole, those that differ, from memory and from its folder."
    trainer = case.trainer("full", case.load(), max_steps=1)
    fit(trainer)
    model = trainer.model.eval()
    chats = _chats(case)[2:]
    plain = [_without_cache(model, case.tok, chat, 8) for chat in chats]
    differ = 0
    for one in (model, case.load_plain(case.folder / "full")):
        differ += sum(a != b for a, b in zip(generate(one, case.tok, chats, 8, progress=False), plain))
    return differ, f"loss {losses(trainer)[0]:.4f}"
