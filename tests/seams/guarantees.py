"""What SFT and DPO guarantee, tried on a tiny model on a CPU: `python tests/seams/guarantees.py` prints it as JSON.

For "sft" and "dpo" the line has either "refused", the error and the step at which the run ended, or "kept": for each
guarantee None, or in words how it was broken. Faults and kills are planted in the model's tensors, so that nothing but
the package and the libraries under it looks for an event or a method. `--library` makes an update with a plain
`trl.SFTTrainer` and `trl.DPOTrainer` instead: whether the libraries run at all.
"""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# two epochs of four steps; a run is killed in its last step, and resumes in the middle of the second epoch
STEPS, SAVE, LIMIT, BATCH, SAVED = 8, 3, 2, 4, [3, 6, 8]
ANSWERS = ["yes", "no, and that is all that I can say", "it is three", "ask me later", "seven of nine", "a red house"]
CHATS = [
    {"prompt": f"question {n}?", "completion": ANSWERS[n % 6] + "." * (n % 5), "other": ANSWERS[(n + 1) % 6]}
    for n in range(14)
]
NAME, COMMIT = "example/tiny", "0123456789" * 4
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
RUN = {**QUIET, "effective_batch": BATCH, "max_steps": STEPS, "save_steps": SAVE, "save_total_limit": LIMIT, "seed": 3,
       "logging_steps": 1, "learning_rate": 3e-3}  # fmt: skip


# ---- runs


def on_the_hub(folder):
    "The tiny model as `NAME` in the folder, laid out as the cache of the hub, at `COMMIT`."
    from ft_notebooks.loading.example_models import tiny_model

    repository = folder / f"models--{NAME.replace('/', '--')}"
    if not repository.is_dir():
        tiny_model().save_pretrained(repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return folder


def adapted(folder, fast):
    from ft_notebooks.loading.example_models import tiny_model
    from ft_notebooks.loading.quantized_loading import load_model
    from ft_notebooks.lora.adapter import add_adapter, lora_config

    model = tiny_model() if fast else load_model(NAME, 32, cache_dir=on_the_hub(folder.parent / "hub"))
    return add_adapter(model, lora_config(model, r=4, lora_dropout=0 if fast else 0.1))


def sft(folder, *, fast=False, **fields):
    """Padded chats in groups of like length, whose order depends on the epoch, with dropout; `fast` is without padding
    and dropout, so that attention and LoRA are computed by the package.
    """
    from ft_notebooks.data.read import read_chats
    from ft_notebooks.loading.example_models import tiny_tokenizer
    from ft_notebooks.sft.trainer import sft_trainer

    chats = read_chats([{"prompt": chat["prompt"], "completion": chat["completion"]} for chat in CHATS])
    order = {} if fast else {"padding_free": False, "train_sampling_strategy": "group_by_length"}
    model, held, fields = adapted(folder, fast), chats.select(range(5)), RUN | order | fields
    return sft_trainer(model, tiny_tokenizer(), chats, held, output_dir=folder, **fields)


def dpo(folder, *, fast=False):
    "Pairs, each seen twice, so that the reference is computed once; `fast` is without dropout."
    from datasets import Dataset

    from ft_notebooks.dpo.trainer import dpo_trainer
    from ft_notebooks.loading.example_models import tiny_tokenizer

    def said(role, text):
        return [{"role": role, "content": text}]

    pairs = [
        {
            "prompt": said("user", chat["prompt"]),
            "chosen": said("assistant", chat["completion"]),
            "rejected": said("assistant", chat["other"]),
        }
        for chat in CHATS
    ]
    model = adapted(folder, fast)
    return dpo_trainer(model, tiny_tokenizer(), Dataset.from_list(pairs), output_dir=folder, **RUN)


def plain(kind, folder):
    "Two updates by TRL's own trainer."
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

    columns = ["prompt", "completion"] if kind == "sft" else ["prompt", "completion", "other"]
    rows = Dataset.from_list(CHATS).select_columns(columns)
    if kind == "dpo":
        rows = rows.rename_columns({"completion": "chosen", "other": "rejected"})
    config, trainer = (SFTConfig, SFTTrainer) if kind == "sft" else (DPOConfig, DPOTrainer)
    args = config(str(folder), per_device_train_batch_size=BATCH, max_steps=2, save_steps=2, **QUIET)
    more = {} if kind == "sft" else {"ref_model": tiny_model()}
    made = trainer(model=tiny_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer(), **more)
    (getattr(made, "train", None) or made.train_renamed)()


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def planted(trainer, at: int, act, *, forward: bool = False):
    """From the step `at` on, counted from 0, `act` is called with a gradient, or with the embeddings of a forward pass,
    and returns what takes its place. The list that is returned has the weights before that step.
    """
    passes, before = [0], []
    trained = next(p for p in trainer.model.parameters() if p.requires_grad)

    def reached():
        now = passes[0] // trainer.args.gradient_accumulation_steps >= at
        if now and not before:
            before.append(weights(trainer))
        return now

    def backward(gradient):
        now = reached()
        passes[0] += 1
        return act(gradient) if now and not forward else None

    def embedded(module, inputs, output):
        now = trainer.model.training and reached()
        return act(output) if now and forward else None

    trained.register_hook(backward)
    trainer.model.get_input_embeddings().register_forward_hook(embedded)
    return before


# ---- guarantees: each returns None, or in words how it is broken


def whole_run(made, folder, found):
    "A run to its end, with what it says; what is deleted meanwhile is noted."
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer = found["trainer"] = made(folder)
        found["before"] = weights(trainer)
        with deletions(folder, found):
            trainer.train()
    found["plan"] = said.getvalue().splitlines()[0] if said.getvalue() else ""
    return trainer


@contextlib.contextmanager
def deletions(folder, found):
    "In `found`, for each checkpoint that is deleted, the newest that was complete then."
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    delete, found["deleted"] = shutil.rmtree, []

    def noted(path, *args, **kwargs):
        if Path(path).name.startswith("checkpoint-"):
            found["deleted"].append((Path(path).name, last_good_checkpoint(folder)))
        return delete(path, *args, **kwargs)

    shutil.rmtree = noted
    try:
        yield
    finally:
        shutil.rmtree = delete


def marks(made, folder, found):
    from ft_notebooks.checkpointing.integrity import checkpoint_fault, last_good_checkpoint

    run = found["folder"]
    there = sorted(run.glob("checkpoint-*"))
    if faults := [f"{path.name}: {fault}" for path in there if (fault := checkpoint_fault(path))]:
        return f"a checkpoint is not marked as complete: {faults[0]}"
    if [path.name for path in there] != [f"checkpoint-{step}" for step in SAVED][-LIMIT:]:
        return f"save_total_limit={LIMIT} leaves {', '.join(path.name for path in there) or 'nothing'}"
    if early := [name for name, good in found["deleted"] if good is None or Path(good).name <= name]:
        return f"{early[0]} was deleted before a newer one was marked"
    if last_good_checkpoint(run) != str(there[-1]):
        return f"last_good_checkpoint finds {last_good_checkpoint(run)}"


def resume(made, folder, found):
    "Killed in the last step, and resumed by `last_good_checkpoint`."
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            trainer = made(folder)
            planted(trainer, STEPS - 1, lambda gradient: os._exit(9))
            trainer.train()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    if (code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) != 9:
        return f"the run that was to be killed ended with {code}"
    start = last_good_checkpoint(folder)
    if start is None:
        return "after a kill there is no complete checkpoint"
    trainer = made(folder)
    trainer.train(start)
    return (
        None if same(weights(trainer), weights(found["trainer"])) else f"resumed at {start}, other weights at the end"
    )


def stopped(trainer, before):
    "How a run with a planted NaN did not stop before the update."
    try:
        trainer.train()
    except ValueError as error:
        problem = f"it ended by {described(error)}"
        if "step 2 is not taken" in str(error):
            return None if same(weights(trainer), before[0]) else "the weights are not those of step 1"
    else:
        problem = "it ran to its end"
    finite = all(bool(p.isfinite().all()) for p in weights(trainer).values())
    return "the update of step 2 was taken; " + "the weights are NaN; " * (not finite) + problem


def nan_gradient(made, folder, found):
    trainer = made(folder, fast=True)
    return stopped(trainer, planted(trainer, 1, lambda gradient: gradient * float("nan")))


def nan_loss(made, folder, found):
    trainer = made(folder, fast=True)
    return stopped(trainer, planted(trainer, 1, lambda output: output * float("nan"), forward=True))


def evaluation(made, folder, found):
    "`eval_loss` is the mean over all trained tokens, also where batches have different numbers of them."
    import torch

    trainer = found["trainer"]
    loss, count = 0.0, 0
    trainer.model.eval()
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    trainer.args.per_device_eval_batch_size = 2
    given = trainer.evaluate()["eval_loss"]
    return None if abs(given - loss / count) < 1e-4 else f"eval_loss is {given:.5f}, the mean is {loss / count:.5f}"


def signals(made, folder, found):
    "A signal in the third step: the step is taken, saved, and the last."
    from ft_notebooks.checkpointing.graceful_stop import save_on_signals
    from ft_notebooks.checkpointing.integrity import last_good_checkpoint

    trainer, sent = made(folder), []

    def once(gradient):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    planted(trainer, 2, once)
    with save_on_signals(trainer):
        trainer.train()
    good = last_good_checkpoint(folder)
    if trainer.state.global_step != 3 or good is None or Path(good).name != "checkpoint-3":
        return f"a signal in step 3 stopped the run after step {trainer.state.global_step}; the last checkpoint: {good}"


def best(made, folder, found):
    "With save_strategy='best' the best checkpoint and the end are there, each of them complete."
    from ft_notebooks.checkpointing.integrity import checkpoint_fault, last_good_checkpoint

    choice = {"save_strategy": "best", "metric_for_best_model": "loss"}
    # the loss falls, so that the first evaluation has the largest
    trainer = made(folder, eval_strategy="steps", eval_steps=2, greater_is_better=True, save_total_limit=2, **choice)
    trainer.train()
    there = Path(trainer.state.best_model_checkpoint or folder)
    if trainer.state.best_global_step == STEPS:
        return "the end was the best: this proves nothing"
    if fault := checkpoint_fault(there):
        return f"the best checkpoint, {there.name}: {fault}"
    good = last_good_checkpoint(folder)
    return None if good and good.endswith(f"checkpoint-{STEPS}") else f"the last complete checkpoint is {good}"


def origin(made, folder, found):
    "The manifest has the model's name, and a checkpoint's adapter the commit of its base."
    told = json.loads((found["folder"] / "manifest.json").read_text(encoding="utf-8"))["recorded"]["model"]
    if told != NAME:
        return f"manifest.json says that the model is {told!r}"
    saved = found["folder"] / f"checkpoint-{STEPS}" / "adapter_config.json"
    revision = json.loads(saved.read_text(encoding="utf-8"))["revision"]
    return None if revision == COMMIT else f"the adapter's base has the revision {revision!r}"


def margin(made, folder, found):
    margins = [entry["rewards/margins"] for entry in found["trainer"].state.log_history if "rewards/margins" in entry]
    if not margins:
        return "no margin was logged"
    return None if abs(margins[0]) < 1e-4 else f"the margin of step 1 is {margins[0]}"


def reference(made, folder, found):
    "Another policy than the reference is refused before step 1, and so are saved values that are no longer true."
    from safetensors.torch import load_file, save_file

    from ft_notebooks.checkpointing.run_manifest import ManifestCallback

    trainer = made(folder)
    trainer.remove_callback(ManifestCallback)  # which sees the change first
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data.add_(0.1)
    if answer := refused(trainer.train, "not the same model", trainer):
        return f"another policy than the reference: {answer}"
    kept = sorted(folder.glob(".reference/*.safetensors"))
    if not kept:
        return "the reference is not kept in the run's folder"
    save_file({name: values + 1 for name, values in load_file(kept[0]).items()}, kept[0])
    if answer := refused(lambda: made(folder).train(), "stale"):
        return f"saved values of another reference: {answer}"


def refused(act, text, trainer=None):
    "How `act` was not refused before step 1 with `text`."
    try:
        act()
    except ValueError as error:
        if text not in str(error):
            return described(error)
        return f"refused after step {trainer.state.global_step}" if trainer and trainer.state.global_step else None
    return "accepted"


CHECKS = {
    "sft": (sft, [marks, resume, nan_gradient, nan_loss, signals, best, evaluation, origin]),
    "dpo": (dpo, [marks, resume, nan_gradient, nan_loss, margin, reference, origin]),
}


# ---- what is said about them


def described(error) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = Path(last.filename)
    return f"{type(error).__name__}: {error} ({'/'.join(place.parts[-3:])}:{last.lineno})"


def ended(error, found) -> dict:
    trainer, step = found.get("trainer"), 0
    if trainer is not None:  # the library's own count, and whether it has changed a weight
        step = trainer.state.global_step or int(not same(found["before"], weights(trainer)))
    said = isinstance(error, ValueError | RuntimeError)  # what the package raises; no AttributeError, say
    return {"said": said, "text": str(error), "where": described(error), "step": step}


def examined(kind, folder) -> dict:
    made, checks = CHECKS[kind]
    found = {"folder": folder / "whole"}
    try:
        whole_run(made, found["folder"], found)
    except Exception as error:
        return {"refused": ended(error, found)}
    kept = {}
    for check in checks:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                kept[check.__name__] = check(made, folder / check.__name__, found)
        except Exception as error:
            kept[check.__name__] = described(error)
    manifest = found["folder"] / "manifest.json"
    return {
        "kept": kept,
        "plan": found["plan"],
        "manifest": json.loads(manifest.read_text(encoding="utf-8"))["recorded"] if manifest.is_file() else None,
    }


def library(kind, folder) -> dict:
    try:
        plain(kind, folder)
    except Exception as error:
        return {"refused": ended(error, {})}
    return {"kept": {}}


def main(arguments: list[str]) -> None:
    look, said = library if arguments == ["--library"] else examined, {}
    with contextlib.suppress(Exception):  # the runs below import them again, and say what is wrong
        import ft_notebooks.dpo.trainer
        import ft_notebooks.sft.trainer  # noqa: F401
    gc.collect()
    gc.freeze()  # a trainer begins with `gc.collect()`, which need not look at the objects of the libraries
    with tempfile.TemporaryDirectory() as folder:
        for kind in CHECKS:
            began = time.process_time()
            with contextlib.redirect_stdout(sys.stderr):
                said[kind] = look(kind, Path(folder, kind))
            said[kind]["seconds"] = round(time.process_time() - began, 1)
    print(json.dumps(said).replace(folder, "RUN"))


if __name__ == "__main__":
    main(sys.argv[1:])
