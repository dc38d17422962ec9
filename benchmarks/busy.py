"""24 answers and a few training steps of SmolLM2 on the CPU beside busy neighbours: what OpenMP's settings cost, alone
and in company.

    python benchmarks/busy.py  # about 20 minutes on two cores that nobody else uses
    python benchmarks/busy.py --neighbours 0 2 --settings default one ours     # about 4 minutes
    python benchmarks/busy.py --neighbours 0 --rounds 5 --settings default spin-3000 spin-10000 ours
    python benchmarks/busy.py --neighbours 2 --late --settings default one ours

A setting is `default`, what torch does by itself; `passive`, OMP_WAIT_POLICY=PASSIVE; `one`, OMP_NUM_THREADS=1;
`spin-N`, GOMP_SPINCOUNT=N; or `ours`, `use_cpu_threads`. A neighbour is a process of one thread that never waits: every
second one runs a loop of Python, the others multiply matrices. Each setting is measured in a process of its own, the
settings in turns: every setting once beside so many neighbours is a round. With `--late` the neighbours start when the
model is loaded and the threads are chosen. Seconds and tokens a second are by the clock. Ratios are formed within a
round, to its best setting; printed are the medians, as the table of README.md. The machine has to be idle otherwise:
its idle CPUs are printed first.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from ft_notebooks.core.cpu_threads import idle_cpus, usable_cpus, use_cpu_threads

ANSWERS, TOKENS, ROWS = 24, 24, 4  # conversations; tokens of an answer, at most; rows of a training step
OPENMP = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
NAMED = {"default": {}, "ours": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "one": {"OMP_NUM_THREADS": "1"}}
CHOSEN = ["default", "passive", "one", "spin-1000", "spin-10000", "spin-100000", "ours"]


def variables(setting: str) -> dict[str, str]:
    if setting in NAMED:
        return NAMED[setting]
    kind, _, count = setting.partition("-")
    if kind != "spin" or not count.isdigit():
        raise SystemExit(f"no setting {setting!r}; there are {', '.join(NAMED)} and spin-N")
    return {"GOMP_SPINCOUNT": count}


def neighbour(parent: int, kind: str) -> None:
    "Computes until the benchmark has ended."
    import numpy

    square = numpy.ones((256, 256))
    while os.getppid() == parent:
        if kind == "matrices":
            square @ square
        else:
            sum(range(100_000))


@contextlib.contextmanager
def neighbours(count: int):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    kinds = ["python", "matrices"] * count
    found = [
        subprocess.Popen([sys.executable, __file__, "--neighbour", str(os.getpid()), kind], env=env)
        for kind in kinds[:count]
    ]
    try:
        time.sleep(1 if count else 0)  # until they compute
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


def child(setting: str, steps: int) -> dict:
    "Seconds of the answers, tokens a second of the training steps but the first, and the threads."
    if setting == "ours":
        use_cpu_threads()
    import datasets
    import torch
    import transformers

    from ft_notebooks import (
        add_adapter,
        appointments,
        encode_chats,
        generate,
        load_model,
        load_tokenizer,
        lora_config,
        sft_trainer,
        smollm2,
    )

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    tok, model, ends = load_tokenizer(smollm2()), load_model(smollm2(), bits=16), []
    chats = [chat[:-1] for chat in appointments(ANSWERS, part="test")["messages"]]
    generate(model, tok, chats[:2], 4, progress=False)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    generate(model, tok, chats, TOKENS, progress=False)
    answered = time.perf_counter() - began

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())

    rows, _ = encode_chats(tok, appointments(ROWS))  # the same in each step
    rows = datasets.concatenate_datasets([rows] * steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        options = {
            "effective_batch": ROWS,
            "max_steps": steps,
            "save_strategy": "no",
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
        }
        trainer = sft_trainer(
            add_adapter(model, lora_config(model, r=16)), tok, rows, output_dir=folder, callbacks=[Ends()], **options
        )
        trainer.train()
    tokens = sum(map(len, rows["input_ids"])) * (steps - 1) / steps
    return {"answers": answered, "training": tokens / (ends[-1] - ends[0]), "threads": torch.get_num_threads()}


def run(setting: str, count: int, options) -> dict:
    env = {name: value for name, value in os.environ.items() if name not in OPENMP} | variables(setting)
    words = [sys.executable, "-W", "ignore", __file__, "--child", setting, "--steps", str(options.steps)]
    with contextlib.ExitStack() as company, tempfile.TemporaryFile("w+") as errors:
        if not options.late:
            company.enter_context(neighbours(count))
        process = subprocess.Popen(
            words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        ready = process.stdout.readline()
        if options.late:
            company.enter_context(neighbours(count))
        said = process.communicate("go\n")[0] if ready else ""
        if process.wait() or not said:
            errors.seek(0)
            raise SystemExit(f"{setting} failed:\n{errors.read()[-3000:]}")
    return json.loads(said)


def cells(found: dict, settings: list[str], setting: str) -> list[str]:
    "Of the answers and of the training: the median, and the median of the ratios to the round's best setting."
    texts = []
    for work, unit, better in (("answers", "s", min), ("training", "tokens/s", max)):
        rounds = zip(*([run[work] for run in found[name]] for name in settings))
        best = [better(values) for values in rounds]
        own = [run[work] for run in found[setting]]
        ratios = [value / top if better is min else top / value for value, top in zip(own, best)]
        digits = 1 if better is min else 0
        texts.append(f"{statistics.median(own):.{digits}f} {unit} ({statistics.median(ratios):.2f})")
    return texts


def main(options) -> None:
    for setting in options.settings:
        variables(setting)
    idle, began = idle_cpus(usable_cpus() - 0.1), time.time()
    print(
        f"{usable_cpus()} CPUs, {idle:.1f} of them idle before; rounds: {options.rounds}; neighbours start "
        f"{'late' if options.late else 'first'}"
    )
    names, columns = options.settings, {}
    for count in options.neighbours:
        found = columns[count] = {name: [] for name in names}
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(run(name, count, options))
                print(
                    f"  {time.time() - began:.0f} s: {count} neighbours, round {turn}, {name}: {found[name][-1]}",
                    file=sys.stderr,
                    flush=True,
                )
    print("\nmedian (times the best setting), answers and training:\n")
    print(f"| setting | threads | {' | '.join(f'{count} neighbours' for count in columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for name in names:
        threads = sorted({run["threads"] for found in columns.values() for run in found[name]})
        row = [
            name,
            " or ".join(map(str, threads)),
            *(", ".join(cells(found, names, name)) for found in columns.values()),
        ]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--neighbour"]:
        neighbour(int(sys.argv[2]), sys.argv[3])
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2, 4], help="how many; default: 0 1 2 4")
    parser.add_argument("--settings", nargs="+", default=CHOSEN, help=f"default: {' '.join(CHOSEN)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help=f"of {ROWS} rows; the first is not counted")
    parser.add_argument("--late", action="store_true", help="neighbours start after the model is loaded")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.steps)))
        raise SystemExit
    main(options)
