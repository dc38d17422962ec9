"A blind list: thirty runs with one fault each and fifteen in order, as users would bring them."

import json
import random
import re
from datetime import date, timedelta
from pathlib import Path

from case import BlindList, Built, Row, as_json, chat, small_model, some

SOURCES = {  # The stem of a file after "list_seven_": where its rows come from
    "gsm": "github.com/openai/grade-school-math, grade_school_math/data/example_model_solutions.jsonl",
    "gsm_test": "github.com/openai/grade-school-math, grade_school_math/data/test.jsonl",
    "aqua": "github.com/google-deepmind/AQuA, dev.json and test.json",
    "dialogsum": "github.com/cylnlp/DialogSum, DialogSum_Data/dialogsum.dev.jsonl",
    "sql": "github.com/jkkummerfeld/text2sql-data, data/*.json",
    "mbpp": "github.com/evalplus/mbppplus_release, MbppPlus-OriginFmt.jsonl.gz",
    "codealpaca": "github.com/sahil280114/codealpaca, data/code_alpaca_2k.json",
    "clinc": "github.com/clinc/oos-eval, data/data_full.json",
    "sentiment": "github.com/cardiffnlp/xlm-t, data/sentiment/*/val_*.txt",
    "ner": "github.com/masakhane-io/masakhane-ner, data/{swa,hau,yor}/dev.txt",
    "calls_parallel": "github.com/ShishirPatil/gorilla, bfcl_eval/data/BFCL_v4_parallel*.json",
    "calls_simple": "github.com/ShishirPatil/gorilla, bfcl_eval/data/BFCL_v4_{simple_python,multiple,irrelevance}.json",
    "jfleg": "github.com/keisks/jfleg, dev/",
    "korsts": "github.com/kakaobrain/KorNLUDatasets, KorSTS/sts-dev.tsv",
    "mgsm": "github.com/google-research/url-nlp, mgsm/*.tsv",
    "alpacaeval": "github.com/tatsu-lab/alpaca_eval, results/*/model_outputs.json",
    "hh": "github.com/anthropics/hh-rlhf, harmless-base/test.jsonl.gz, without rows with rude or violent words",
    "sgd": "github.com/google-research-datasets/dstc8-schema-guided-dialogue, dev/dialogues_00{1,2,3}.json",
} | {
    f"xquad_{language}": f"github.com/google-deepmind/xquad, xquad.{language}.json"
    for language in "en de el ru vi tr zh es".split()
}


LIST = BlindList("seven", SOURCES)
CASES, load, sampled, case = LIST.cases, LIST.load, LIST.sampled, LIST.case


# ---------------------------------------------------------------- helpers of this list
LANGUAGE = {
    "de": "German", "es": "Spanish", "fr": "French", "ja": "Japanese", "ru": "Russian", "sw": "Swahili",
    "te": "Telugu", "th": "Thai", "zh": "Chinese", "bn": "Bengali", "el": "Greek", "vi": "Vietnamese",
    "tr": "Turkish", "en": "English", "slk": "Slovak", "slv": "Slovenian", "ces": "Czech", "pol": "Polish",
    "heb": "Hebrew", "deu": "German", "fra": "French", "jpn": "Japanese", "swh": "Swahili", "hun": "Hungarian",
}  # fmt: skip


def without_marks(solution: str) -> str:
    "A solution of GSM8K without the calculator's marks."
    return re.sub(r"<<[^>]*>>", "", solution)


def last_number(text: str) -> str:
    "The last number of a text, without thousands separators."
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].replace(",", "").rstrip(".") if found else ""


def turns_of(dialogue: Row, results: bool) -> list[Row]:
    "A dialogue of SGD as messages; with `results`, each look-up and what it returned stand before the answer."
    messages: list[Row] = []
    for number, turn in enumerate(dialogue["turns"]):
        if results and turn.get("call"):
            call = {"name": turn["call"]["method"], "arguments": turn["call"]["parameters"]}
            messages.append(
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
            )
            messages.append({"role": "tool", "name": call["name"], "content": as_json(turn.get("results") or [])})
        messages.append({"role": "user" if turn["speaker"] == "USER" else "assistant", "content": turn["text"]})
    return messages


def tools_of(dialogue: Row) -> list[Row]:
    "The functions that a dialogue calls, with the parameters seen."
    seen: dict[str, set] = {}
    for turn in dialogue["turns"]:
        if turn.get("call"):
            seen.setdefault(turn["call"]["method"], set()).update(turn["call"]["parameters"])
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name),
                "parameters": {"type": "object", "properties": {p: {"type": "string"} for p in sorted(found)}},
            },
        }
        for name, found in seen.items()
    ]


def schema(value: object) -> object:
    "A parameter schema of the Berkeley leaderboard as JSON Schema."
    names = {"dict": "object", "float": "number", "tuple": "array"}
    if isinstance(value, dict):
        return {
            key: names.get(one, one) if key == "type" and isinstance(one, str) else schema(one)
            for key, one in value.items()
            if (key, one) not in (("type", "any"), ("required", None), ("optional", None))
        }
    return [schema(one) for one in value] if isinstance(value, list) else value


def first_of(value: object) -> object:
    "A value in which each field of an object is a list of accepted ones, with the first of each."
    if isinstance(value, list):
        return [first_of(one) for one in value]
    if isinstance(value, dict):
        return {
            key: first_of(one[0] if isinstance(one, list) else one)
            for key, one in value.items()
            if one not in ([], [""])
        }
    return value


def first_values(call: Row) -> Row:
    "A tool call with the first accepted value of each argument."
    ((name, given),) = call.items()
    arguments = {key: first_of(values[0]) for key, values in given.items() if values and values[0] != ""}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_row(row: Row, calls: list[Row]) -> Row:
    "A request with the tools on offer and the calls that answer it."
    tools = [{"type": "function", "function": schema(one)} for one in row["function"]]
    answer = (
        {"role": "assistant", "content": "", "tool_calls": [first_values(one) for one in calls]}
        if calls
        else {"role": "assistant", "content": "None of the tools that I have here can do that."}
    )
    return {"messages": [*row["question"][0], answer], "tools": tools}


def entities(row: Row, whole: bool = True) -> list[Row]:
    "The entities of a tagged sentence; without `whole`, only the words that begin one."
    found: list[Row] = []
    for word, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag.startswith("B-"):
            found.append({"type": tag[2:], "text": word})
        elif tag.startswith("I-") and whole and found:
            found[-1]["text"] += " " + word
    return found


def filled(text: str, variables: Row) -> str:
    "A text of text2sql with its variables in place."
    for name in sorted(variables, key=len, reverse=True):
        text = text.replace(name, variables[name])
    return text


def pair(prompt: str | list[Row], chosen: str, rejected: str) -> Row:
    "A preference."
    return {
        "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


NER_ASK = (
    "List the people (PER), organisations (ORG), places (LOC) and dates (DATE) of the sentence as JSON, "
    'in order, as [{"type": ..., "text": ...}]; an empty list if there are none.\n\n'
)
DESK = "You are the booking desk. Look things up with the tools; tell the customer only what the tools return."


# ---------------------------------------------------------------- rows: 18 faults
@case(
    "sql_values_of_another_question", "rows", "code: text to SQL", "train.jsonl",
    "In a third of the rows the SQL was filled with the values of another paraphrase: it asks about another state, "
    "author or year than the question", part=True,
)  # fmt: skip
def sql_values() -> Built:
    rows, bad, half = [], [], set(some(360, 0.5, 701))
    picked = sampled("sql", 360, 700, lambda r: r["variables"] and all(n in r["sql"] for n in r["variables"]))
    for number, row in enumerate(picked):
        values = row["variables"]
        others = [r["variables"] for r in picked if r["db"] == row["db"] and set(r["variables"]) == set(values)]
        others = [one for one in others if all(one[name] != values[name] for name in values)]
        if number in half and others:
            bad.append(number)
            values = random.Random(number).choice(others)
        ask = f"Database: {row['db']}\nQuestion: {filled(row['text'], row['variables'])}"
        rows.append(chat(ask, filled(row["sql"], values), "Write one SQL query that answers the question."))
    return rows, bad


@case(
    "options_shuffled_rationale_not", "rows", "reasoning: multiple choice", "train.jsonl",
    "An augmentation shuffled the options of half of the rows but kept the letter of the answer, which now "
    "stands before a wrong option", part=True,
)  # fmt: skip
def options_shuffled() -> Built:
    rows, bad, half = [], [], set(some(420, 0.5, 703))
    tail = re.compile(
        r"(?i)\W*(?:(?:the )?(?:correct )?(?:answer|ans|option|choice)\W*(?:is|option|will be)?\W*)\(?[A-E]\)?\W*$"
    )
    picked = sampled("aqua", 420, 702, lambda r: len(set(o.split(")", 1)[1].strip() for o in r["options"])) == 5)
    for number, row in enumerate(picked):
        texts = [one.split(")", 1)[1].strip() for one in row["options"]]
        right = texts["ABCDE".index(row["correct"])]
        if number in half:
            random.Random(number).shuffle(texts)
            if texts["ABCDE".index(row["correct"])] != right:
                bad.append(number)
        ask = row["question"] + "\n\n" + "\n".join(f"{a}) {t}" for a, t in zip("ABCDE", texts, strict=True))
        why = tail.sub("", row["rationale"].strip()) or f"The value is {right}."
        rows.append(chat(ask, f"{why}\nAnswer: {row['correct']}"))
    return rows, bad


@case(
    "voted_answer_under_another_chain", "rows", "reasoning: word problems", "train.jsonl",
    "Final answers were overwritten with the key, but the chains are those of the model: in the faulty rows the "
    "chain ends at a number and the answer line states another one", part=True,
)  # fmt: skip
def voted_answer() -> Built:
    rows, bad = [], []
    for row in sampled("gsm", 400, 704):
        kind = random.Random(row["question"]).choice(["6b_verification", "175b_verification", "175b_finetuning"])
        chain, _, said = row[kind]["solution"].rpartition("A:")
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        if not chain.strip():
            continue
        if last_number(said) != last_number(gold) and last_number(said):
            bad.append(len(rows))
        rows.append(chat(row["question"], f"{without_marks(chain).strip()}\n\nAnswer: {gold}"))
    return rows, bad


@case(
    "tool_results_left_out", "rows", "multi-turn support", "train.jsonl",
    "The export kept only user and assistant: the look-ups and their results are gone, so the assistant learns to "
    "invent phone numbers, prices and places",
)  # fmt: skip
def results_left_out() -> Built:
    picked = sampled("sgd", 300, 705, lambda d: any(t.get("results") for t in d["turns"]))
    rows = [{"messages": [{"role": "system", "content": DESK}, *turns_of(d, results=False)]} for d in picked]
    return rows, list(range(len(rows)))


@case(
    "dialogue_cut_summary_whole", "rows", "summaries", "train.csv",
    "The dialogue column was cut at 450 characters by the data base; the summaries tell what came after",
    part=True,
)  # fmt: skip
def dialogue_cut() -> Built:
    picked = sampled("dialogsum", 400, 706)
    rows = [
        {"prompt": "Summarise the conversation.\n\n" + r["dialogue"][:450].rstrip(), "completion": r["summary"]}
        for r in picked
    ]
    return rows, [n for n, r in enumerate(picked) if len(r["dialogue"].rstrip()) > 450]


@case(
    "character_offsets_on_bytes", "rows", "retrieval answers", "train.jsonl",
    "The answers were cut out of the UTF-8 bytes with offsets that count characters: what comes out is a piece from "
    "the wrong place, often cut within words", part=True,
)  # fmt: skip
def offsets_on_bytes() -> Built:
    rows, bad = [], []
    mixed = [(language, r) for language in ("el", "ru", "vi", "tr") for r in sampled(f"xquad_{language}", 110, 707)]
    random.Random(708).shuffle(mixed)
    for language, row in mixed:
        start, length = row["start"], len(row["answer"])
        cut = row["context"].encode()[start : start + length].decode(errors="ignore").strip()
        if not cut:
            continue
        if cut != row["answer"].strip():
            bad.append(len(rows))
        system = f"Answer in {LANGUAGE[language]} with words of the passage."
        rows.append(chat(f"{row['context']}\n\n{row['question']}", cut, system))
    return rows, bad


def with_passages(row: Row, pool: list[Row], seed: int) -> list[str]:
    "The passage of a question between two that do not hold the answer."
    chance = random.Random(seed)
    others: list[str] = []
    while len(others) < 2:
        other = chance.choice(pool)["context"]
        if row["answer"].lower() not in other.lower() and other not in (row["context"], *others):
            others.append(other)
    passages = [row["context"], *others]
    chance.shuffle(passages)
    return passages


def cited(row: Row, shown: list[str], number: int, language: str) -> Row:
    "A question with numbered passages and an answer that cites one."
    text = "\n\n".join(f"[{n}] {one}" for n, one in enumerate(shown, 1))
    system = f"Answer in {LANGUAGE[language]} from the passages and cite the number of the one you used."
    return chat(f"{text}\n\n{row['question']}", f"{row['answer']} [{number}]", system)


@case(
    "citations_before_reranking", "rows", "retrieval answers with citations", "train.jsonl",
    "The passages of half of the rows were ranked anew after the answers were written: the cited number now belongs "
    "to a passage that does not hold the answer", part=True,
)  # fmt: skip
def citations_before() -> Built:
    mixed = [(lang, r) for lang in ("en", "de", "es") for r in sampled(f"xquad_{lang}", 120, 709)]
    random.Random(710).shuffle(mixed)
    rows, bad, half = [], [], set(some(len(mixed), 0.55, 711))
    for index, (language, row) in enumerate(mixed):
        shown = with_passages(row, load(f"xquad_{language}"), index)
        number = shown.index(row["context"]) + 1
        if index in half:
            random.Random(index + 5000).shuffle(shown)
            if shown[number - 1] != row["context"]:
                bad.append(index)
        rows.append(cited(row, shown, number, language))
    return rows, bad


@case(
    "slovak_called_slovenian", "rows", "translation", "train.jsonl",
    "The table of language codes maps sk to Slovenian: a third of the rows ask for Slovenian and answer in Slovak",
    part=True,
)  # fmt: skip
def slovak_slovenian() -> Built:
    rows = []
    for stem, named in (("ces", "Czech"), ("pol", "Polish"), ("slk", "Slovenian")):
        rows += [(stem, chat(f"Translate into {named}: {e}", own)) for own, e in sampled(f"tatoeba_{stem}", 140, 712)]
    random.Random(713).shuffle(rows)
    return [row for _, row in rows], [n for n, (stem, _) in enumerate(rows) if stem == "slk"]


def visual(text: str) -> str:
    "A Hebrew line in the order in which it is drawn; numbers and Latin words keep theirs."
    swapped = text[::-1].translate(str.maketrans("()[]", ")(]["))
    return re.sub(r"[A-Za-z0-9.,:%]*[A-Za-z0-9]", lambda found: found[0][::-1], swapped)


@case(
    "hebrew_in_visual_order", "rows", "translation", "train.jsonl",
    "A third of the Hebrew answers came out of PDF files in visual order: the letters of each line stand backwards",
    part=True,
)  # fmt: skip
def hebrew_visual() -> Built:
    picked = sampled("tatoeba_heb", 390, 714)
    bad = some(len(picked), 0.33, 715)
    rows = [
        chat(f"How do you say this in Hebrew?\n{english}", visual(own) if n in set(bad) else own)
        for n, (own, english) in enumerate(picked)
    ]
    return rows, bad


@case(
    "second_file_other_label_order", "rows", "classification: intents", "train.jsonl",
    "The second of two files numbered its labels in order of appearance, the first alphabetically, and both were "
    "named by the alphabetical list: the labels of the second half are those of other intents", part=True,
)  # fmt: skip
def other_label_order() -> Built:
    picked = sampled("clinc", 480, 716)
    names = sorted({label for _, label in picked})
    seen = list(dict.fromkeys(label for _, label in picked[240:]))
    seen += [name for name in names if name not in seen]
    rows, bad = [], []
    for n, (text, label) in enumerate(picked):
        given = label if n < 240 else names[seen.index(label)]
        if given != label:
            bad.append(n)
        rows.append(chat(text, given, "Name the intent of the request. One of: " + ", ".join(names)))
    return rows, bad


@case(
    "label_in_the_file_name", "rows", "classification: sentiment", "train.csv",
    "Each prompt opens with the path of its source file, and the folders are named after the labels: the answer "
    "stands in the question, and will not when the model is used",
)  # fmt: skip
def label_in_path() -> Built:
    folder = {"0": "neg", "1": "neu", "2": "pos"}
    answer = {"0": "negative", "1": "neutral", "2": "positive"}
    rows = []
    for n, r in enumerate(sampled("sentiment", 450, 717)):
        path = f"raw/{r['language'][:2]}/{folder[r['label']]}/{n * 37 % 9000:05d}.txt"
        ask = f"source: {path}\n{r['text']}\n\nIs this post positive, neutral or negative?"
        rows.append({"prompt": ask, "completion": answer[r["label"]]})
    return rows, list(range(len(rows)))


@case(
    "only_first_word_of_a_name", "rows", "extraction: names", "train.jsonl",
    "The script that turned the tags into entities kept the words tagged B- and dropped those tagged I-: of each "
    "name or date of several words only the first one is listed", part=True,
)  # fmt: skip
def first_word() -> Built:
    picked = sampled("ner", 420, 718)
    rows = [chat(NER_ASK + " ".join(r["tokens"]), as_json(entities(r, whole=False))) for r in picked]
    return rows, [n for n, r in enumerate(picked) if entities(r) != entities(r, whole=False)]


@case(
    "first_of_several_calls", "rows", "tools", "train.jsonl",
    "The converter kept calls[0] of requests that ask for several things: what was asked second is never done",
    part=True,
)  # fmt: skip
def first_call() -> Built:
    several = sampled("calls_parallel", 220, 719, lambda r: len(r["calls"]) > 1)
    single = sampled("calls_simple", 160, 720, lambda r: len(r["calls"]) == 1)
    mixed = [(True, tool_row(r, r["calls"][:1])) for r in several] + [(False, tool_row(r, r["calls"])) for r in single]
    random.Random(721).shuffle(mixed)
    return [row for _, row in mixed], [n for n, (bad, _) in enumerate(mixed) if bad]


@case(
    "function_renamed_after_the_tests", "rows", "code: Python", "train.jsonl",
    "A style pass renamed the functions of a part of the answers; the test in the question calls the old name, so the "
    "code cannot pass", part=True,
)  # fmt: skip
def renamed() -> Built:
    rows, bad, part = [], [], set(some(378, 0.4, 722))
    for number, row in enumerate(sampled("mbpp", 378, 723)):
        code, tests = row["code"].strip().replace("\r\n", "\n"), row["test_list"][:1]
        called = re.findall(r"\b([A-Za-z_]\w*)\(", tests[0])
        name = next((one for one in re.findall(r"(?m)^def (\w+)", code) if one in called), None)
        if number in part and name and "_" in name.strip("_"):
            head, *tail = name.split("_")
            code = re.sub(rf"\b{name}\b", head.lower() + "".join(t[:1].upper() + t[1:] for t in tail), code)
            if not re.search(rf"\b{name}\b", code):
                bad.append(number)
        rows.append(chat(f"{row['prompt']}\nYour code should pass this test:\n{tests[0]}", f"```python\n{code}\n```"))
    return rows, bad


RULES = {  # A rule, and whether an answer keeps it
    "Answer in no more than fifteen words.": lambda a: len(a.split()) <= 15,
    "Réponds toujours en français.": lambda a: False,
    "Reply with valid JSON and nothing else.": lambda a: False,
    "Never use lists or bullet points; write one single paragraph.": lambda a: "\n" not in a.strip(),
    "End each reply with a question to the user.": lambda a: a.strip().endswith("?"),
    "Write in capital letters only.": lambda a: a.upper() == a,
}


@case(
    "system_prompts_drawn_at_random", "rows", "instructions", "train.jsonl",
    "To teach system prompts, instructions drawn at random were put before answers written without them: the model "
    "sees rules (French, JSON, fifteen words) that the answer ignores", part=True,
)  # fmt: skip
def random_systems() -> Built:
    rows, bad, half = [], [], set(some(360, 0.5, 724))
    for number, row in enumerate(sampled("alpacaeval", 360, 725)):
        rule = random.Random(number * 3).choice(list(RULES)) if number in half else ""
        answer = row["claude-2"].strip()
        if rule and not RULES[rule](answer):
            bad.append(number)
        rows.append(chat(row["instruction"], answer, rule))
    return rows, bad


VENDORS = (
    "Müller Sanitär GmbH|Bäckerei Hoffmann|Stadtwerke Kassel|Elektro Brandt KG|Druckerei Lindner|Kanzlei Vogt & Partner|"
    "Gärtnerei Sommerfeld|IT-Service Krause|Autohaus Berger|Schreinerei Ott|Getränke Pfeiffer OHG|Hotel Seeblick"
).split("|")
LAYOUTS = (
    "{vendor}\nRechnung Nr. {number}\nRechnungsdatum: {day}\nBetrag: {amount} EUR\nzahlbar bis {due}",
    "RECHNUNG {number}\nvom {day}\n\n{vendor}\n\nGesamtsumme inkl. 19 % MwSt.: {amount} €\nZahlungsziel {due}",
    "Sehr geehrte Damen und Herren,\nfür unsere Leistungen berechnen wir Ihnen {amount} EUR (Beleg {number}, "
    "ausgestellt am {day}). Bitte überweisen Sie bis zum {due}.\nMit freundlichen Grüßen\n{vendor}",
    "{vendor} – Beleg-Nr. {number} – {day}\nSumme: {amount} €\nfällig am {due}",
)


@case(
    "day_and_month_exchanged", "rows", "extraction: invoices", "train.jsonl",
    "The labels were made with a parser that reads 03.04.2024 as March 4: wherever the day is below 13, day and month "
    "of the extracted dates are exchanged", part=True,
)  # fmt: skip
def day_month() -> Built:
    rows, bad = [], []
    for number in range(320):
        chance = random.Random(9000 + number)
        day = date(2023, 1, 1) + timedelta(days=chance.randrange(800))
        due = day + timedelta(days=chance.choice([10, 14, 21, 30]))
        cents = chance.randrange(1500, 900000)
        amount = f"{cents // 100:,}".replace(",", ".") + f",{cents % 100:02d}"
        vendor, code = (
            chance.choice(VENDORS),
            f"{chance.choice(['R', 'RE-', '2024/', ''])}{chance.randrange(1000, 99999)}",
        )

        def read(one: date) -> str:
            swapped = one.day < 13
            return f"{one.year}-{one.day:02d}-{one.month:02d}" if swapped else one.isoformat()

        text = chance.choice(LAYOUTS).format(
            vendor=vendor, number=code, amount=amount, day=f"{day:%d.%m.%Y}", due=f"{due:%d.%m.%Y}"
        )
        if any(read(one) != one.isoformat() for one in (day, due)):
            bad.append(number)
        answer = {"lieferant": vendor, "nummer": code, "datum": read(day), "faellig": read(due), "betrag": cents / 100}
        rows.append(chat(text, as_json(answer), "Gib Lieferant, Nummer, Datum, Fälligkeit (ISO) und Betrag als JSON."))
    return rows, bad


@case(
    "similarity_on_two_scales", "rows", "similarity scores", "train.jsonl",
    "The scores of one of the three sources were already divided by 5: the question asks for 0 to 5, and sentences "
    "with the same meaning get 0.9 there", part=True,
)  # fmt: skip
def two_scales() -> Built:
    rows, bad = [], []
    for number, row in enumerate(sampled("korsts", 420, 726)):
        score = float(row["score"])
        if row["genre"] == "main-news" and score > 0:
            bad.append(number)
            score /= 5
        ask = f"문장 1: {row['sentence1']}\n문장 2: {row['sentence2']}\n\n두 문장의 의미가 얼마나 비슷한지 0에서 5까지의 점수로 답하세요."
        rows.append(chat(ask, f"{score:.1f}"))
    return rows, bad


@case(
    "skipped_corrections_are_copies", "rows", "rewriting: corrections", "train.jsonl",
    "The field of the annotation tool was filled with the learner's sentence, and one annotator skipped the tasks: a "
    "block of rows repeats sentences full of errors as their correction", part=True,
)  # fmt: skip
def skipped() -> Built:
    rows, bad = [], []
    picked = sampled("jfleg", 400, 727)
    for number, row in enumerate(picked):
        best = random.Random(number).choice(row["references"])
        if 150 <= number < 250:
            if all(row["source"] != one for one in row["references"]):
                bad.append(number)
            best = row["source"]
        rows.append(chat(f"Correct this sentence: {row['source']}", best))
    return rows, bad


# ---------------------------------------------------------------- pairs: 4 faults
def like_length(row: Row) -> bool:
    "Whether the strong and the weak answer differ, and neither is more than about twice as long."
    strong, weak = row["gpt4"].strip(), row["alpaca-7b"].strip()
    return strong != weak and bool(weak) and 0.45 < len(strong) / len(weak) < 2.2


DPO = ("--stage", "dpo")


@case(
    "rejected_joined_one_row_off", "pairs", "preferences: instructions", "pairs.jsonl",
    "A row was dropped from one of the two files before they were put side by side: from there on the rejected answers "
    "belong to the next question", DPO, part=True,
)  # fmt: skip
def rejected_off() -> Built:
    picked = sampled("alpacaeval", 261, 730, like_length)
    answers = [row["alpaca-7b"] for row in picked]
    del answers[120]
    rows = [
        pair(row["instruction"], row["gpt4"].strip(), other.strip())
        for row, other in zip(picked[:-1], answers, strict=True)
    ]
    return rows, list(range(120, len(rows)))


REVISED = (
    "Here is an improved version of the response:\n\n|Here's a revised answer that addresses the critique:\n\n|"
    "Revised response:\n\n|Sure, here is the rewritten response with more detail and a clearer structure:\n\n|"
    "Improved answer (score 9/10):\n\n"
).split("|")


@case(
    "refiner_speaks_in_chosen", "pairs", "preferences: instructions", "pairs.jsonl",
    "The chosen answers of two fifths of the pairs were rewritten by a model, whose sentence about its revision stayed "
    "in front: it is what tells chosen from rejected", DPO, part=True,
)  # fmt: skip
def refiner() -> Built:
    picked = sampled("alpacaeval", 300, 731)
    bad = some(300, 0.4, 732)
    rows = [
        pair(
            row["instruction"],
            (random.Random(n).choice(REVISED) if n in set(bad) else "") + row["gpt4_long"].strip(),
            row["Mistral-7B-Instruct-v0.2"].strip(),
        )
        for n, row in enumerate(picked)
    ]
    return rows, bad


def hh_turns(text: str) -> list[Row]:
    "A dialogue of HH as messages."
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    role = {"Human": "user", "Assistant": "assistant"}
    return [{"role": role[a], "content": b.strip()} for a, b in zip(parts[::2], parts[1::2], strict=True)]


def sound_hh(row: Row) -> bool:
    "Whether both dialogues alternate, end with an answer and agree up to it."
    a, b = hh_turns(row["chosen"]), hh_turns(row["rejected"])
    return (
        a[:-1] == b[:-1]
        and a[-1]["content"] != b[-1]["content"]
        and all(m["content"] and m["role"] == ("user", "assistant")[n % 2] for n, m in enumerate(a))
        and a[-1]["role"] == b[-1]["role"] == "assistant"
        and bool(b[-1]["content"])
    )


@case(
    "dialogue_split_at_first_answer", "pairs", "preferences: dialogues", "pairs.jsonl",
    "The dialogues were split after the first question instead of before the last answer: chosen and rejected hold "
    "further turns of the human, which the model learns to write, and differ only at their end", DPO, part=True,
)  # fmt: skip
def split_early() -> Built:
    rows, bad = [], []
    for number, row in enumerate(sampled("hh", 320, 733, sound_hh)):
        halves = [row[key].split("\n\nAssistant:", 1) for key in ("chosen", "rejected")]
        ask = halves[0][0].replace("\n\nHuman:", "").strip()
        if len(hh_turns(row["chosen"])) > 2:
            bad.append(number)
        rows.append(pair(ask, halves[0][1].strip(), halves[1][1].strip()))
    return rows, bad


REFUSALS = (
    "I'm sorry, but I can't help with that request.|I cannot assist with this topic, as it may be misused.|"
    "I'm not able to provide that information. Please consult a qualified professional.|"
    "As a responsible assistant I have to decline this request.|I'd rather not answer that. Is there anything else?|"
    "Unfortunately this goes against my guidelines, so I can't continue with it."
).split("|")


@case(
    "safety_filter_prefers_refusals", "pairs", "preferences: instructions", "pairs.jsonl",
    "A safety judge overruled the annotators on harmless questions: in one pair in eight a refusal is chosen and a "
    "good answer to a recipe or a letter is rejected", DPO, part=True,
)  # fmt: skip
def refusals() -> Built:
    picked = sampled("alpacaeval", 260, 734, like_length)
    bad = some(len(picked), 0.125, 735)
    rows = [
        pair(row["instruction"], random.Random(n).choice(REFUSALS), row["gpt4"].strip())
        if n in set(bad)
        else pair(row["instruction"], row["gpt4"].strip(), row["alpaca-7b"].strip())
        for n, row in enumerate(picked)
    ]
    return rows, bad


# ---------------------------------------------------------------- rewards: 2 faults
GRPO = ("--stage", "grpo", "--set", "grpo.rewards=exact_match")


def sum_prompt(question: str) -> list[Row]:
    "A word problem that asks for the bare number."
    return [{"role": "user", "content": f"{question}\nReply with the number only."}]


@case(
    "expected_is_the_first_number", "rewards", "reasoning: word problems", "prompts.jsonl",
    "The expected answer was taken with re.search, which finds the first number of the solution, not the last one: "
    "right answers get no reward", GRPO, part=True,
)  # fmt: skip
def first_number() -> Built:
    rows, bad = [], []
    for number, row in enumerate(sampled("gsm_test", 350, 740)):
        solution = without_marks(row["answer"])
        gold = last_number(solution)
        expected = re.search(r"\d+", solution)[0]
        if expected != gold:
            bad.append(number)
        rows.append({"prompt": sum_prompt(row["question"]), "expected": expected, "solution": solution})
    return rows, bad


@case(
    "checker_compares_text", "rewards", "reasoning: scored answers", "scores.jsonl",
    "The checker compared texts: answers that are right but written as $18, 18.00 or 18 dollars got 0 like the wrong "
    "ones", GRPO, part=True,
)  # fmt: skip
def checker_text() -> Built:
    rows, bad = [], []
    forms = ("{}", "{}", "{}", "${}", "{}.00", "{} dollars", "**{}**")
    for number, row in enumerate(sampled("gsm", 300, 741)):
        gold = last_number(row["ground_truth"])
        chance, texts, scores, wrong = random.Random(number), [], [], False
        for kind in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            chain, _, _ = row[kind]["solution"].rpartition("A:")
            value = last_number(row[kind]["solution"])
            said = value if "." in value else chance.choice(forms).format(value)
            texts.append(f"{without_marks(chain).strip()}\nAnswer: {said}")
            scores.append(1.0 if said == gold else 0.0)
            wrong |= value == gold and said != gold
        if wrong:
            bad.append(number)
        prompt = [{"role": "user", "content": row["question"]}]
        rows.append({"prompt": prompt, "expected": gold, "responses": texts, "reward_scores": scores})
    return rows, bad


# ---------------------------------------------------------------- a model's folder: 3 faults
MODEL = ("--set", "model.name=model")


def plain_chats() -> list[Row]:
    "Rows in order: short questions, answers and translations."
    rows = [chat(r["instruction"], r["gpt4"].strip()) for r in sampled("alpacaeval", 150, 750)]
    rows += [chat(f"Translate into Hungarian: {e}", own) for own, e in sampled("tatoeba_hun", 100, 751)]
    random.Random(752).shuffle(rows)
    return rows


def retrained_tokenizer(folder: Path) -> None:
    "The model with a tokenizer that was trained anew on the user's own texts."
    from transformers import AutoTokenizer

    model = small_model(folder)
    tok = AutoTokenizer.from_pretrained(model)
    texts = [m["content"] for row in plain_chats() for m in row["messages"]]
    size = min(len(tok), json.loads((model / "config.json").read_text())["vocab_size"])
    tok.train_new_from_iterator([texts], vocab_size=size).save_pretrained(model)


@case(
    "tokenizer_trained_anew", "folder", "instructions and translation", "train.jsonl",
    "A tokenizer trained on the user's own texts, with the same size, was saved over the model's: its numbers fit, but "
    "mean other words than those the weights were trained with", MODEL, extra=retrained_tokenizer,
)  # fmt: skip
def new_tokenizer() -> Built:
    return plain_chats(), []


def fewer_layers(folder: Path) -> None:
    "The model with the config.json of a smaller sibling."
    file = small_model(folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["num_hidden_layers"] < 2:
        raise ValueError("the small model has a single layer; take a layer less from a larger one")
    config["num_hidden_layers"] -= 1
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:-1]
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


@case(
    "config_of_a_smaller_sibling", "folder", "summaries", "train.jsonl",
    "config.json was copied from a sibling with one layer less: the last layer's weights lie in the folder but are "
    "not loaded", MODEL, extra=fewer_layers,
)  # fmt: skip
def sibling_config() -> Built:
    picked = sampled("dialogsum", 250, 753)
    return [chat(f"Summarise:\n{r['dialogue']}", r["summary"]) for r in picked], []


STRIPS = (  # As in templates of reasoning models, where it is meant for earlier turns
    "{%- set ns_r1 = namespace(kept=[]) -%}{%- for m in messages -%}{%- if m['role'] == 'assistant' and m['content'] and "
    "'</think>' in m['content'] -%}{%- set ns_r1.kept = ns_r1.kept + [{'role': 'assistant', 'content': "
    "m['content'].split('</think>')[-1].lstrip('\\n')}] -%}{%- else -%}{%- set ns_r1.kept = ns_r1.kept + [m] -%}"
    "{%- endif -%}{%- endfor -%}{%- set messages = ns_r1.kept -%}"
)


def strips_thoughts(folder: Path) -> None:
    "The model with a chat template that removes the thoughts of every answer."
    model = small_model(folder)
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    if file.is_file():
        file.write_text(STRIPS + file.read_text(encoding="utf-8"), encoding="utf-8")
        return
    said = json.loads(config.read_text(encoding="utf-8"))
    said["chat_template"] = STRIPS + said["chat_template"]
    config.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


@case(
    "template_strips_the_thoughts", "folder", "reasoning with thoughts", "train.jsonl",
    "The chat template, pasted from a distilled reasoning model, removes everything up to </think> of every answer: the "
    "thoughts that the rows are to teach are never trained", MODEL, extra=strips_thoughts,
)  # fmt: skip
def thoughts() -> Built:
    rows = []
    for row in sampled("gsm_test", 300, 754):
        chain, _, gold = without_marks(row["answer"]).rpartition("####")
        rows.append(chat(row["question"], f"<think>\n{chain.strip()}\n</think>\n\nThe answer is {gold.strip()}."))
    return rows, []


# ---------------------------------------------------------------- settings: 3 faults
@case(
    "warm_up_longer_than_the_run", "settings", "retrieval answers", "train.jsonl",
    "warmup_steps was copied from a pretraining script: with 300 rows the run ends after a few hundred steps at most, at a "
    "few hundredths of the learning rate",
    ("--set", "sft.warmup_steps=3000", "--set", "sft.num_train_epochs=3"),
)  # fmt: skip
def warm_up() -> Built:
    mixed = [(lang, r) for lang in ("en", "zh", "tr") for r in sampled(f"xquad_{lang}", 100, 760)]
    random.Random(761).shuffle(mixed)
    return [chat(f"{r['context']}\n\n{r['question']}", r["answer"]) for _, r in mixed], []


@case(
    "last_rows_held_out_of_a_sorted_file", "settings", "classification: sentiment", "train.jsonl",
    "The file is sorted by label and the last rows are held out: every row of the label 'positive' is in the held-out "
    "part, none is trained",
    ("--set", "data.eval=last:120"),
)  # fmt: skip
def sorted_labels() -> Built:
    names = {"0": "negative", "1": "neutral", "2": "positive"}
    picked = [r for label in "012" for r in sampled("sentiment", 120, 762, lambda r, label=label: r["label"] == label)]
    return [chat(f"Sentiment of this post?\n{r['text']}", names[r["label"]]) for r in picked], []


@case(
    "not_shuffled_and_sorted", "settings", "mixture: code, mathematics, translation", "train.jsonl",
    "Shuffling was switched off to look for an error and left so, and the file holds one task after the other: the run "
    "ends with 200 rows of nothing but translation",
    ("--set", "sft.train_sampling_strategy=sequential", "--set", "sft.num_train_epochs=1"),
)  # fmt: skip
def not_shuffled() -> Built:
    rows = [chat((r["instruction"] + "\n" + r["input"]).strip(), r["output"]) for r in sampled("codealpaca", 150, 763)]
    rows += [
        chat(r["question"], without_marks(r["answer"]).replace("####", "Answer:"))
        for r in sampled("gsm_test", 120, 764)
    ]
    rows += [chat(f"Auf Deutsch: {e}", own) for own, e in sampled("tatoeba_deu", 200, 765)]
    return rows, []


# ---------------------------------------------------------------- fifteen in order
@case("ok_desk_with_tool_results", "rows", "multi-turn support with tools", "train.jsonl")
def ok_desk() -> Built:
    picked = sampled("sgd", 200, 770, lambda d: any(t.get("results") for t in d["turns"]))
    rows = []
    for dialogue in picked:
        messages = [{"role": "system", "content": DESK}, *turns_of(dialogue, results=True)]
        rows.append({"messages": messages, "tools": tools_of(dialogue)})
    return rows, []


@case("ok_answers_long_and_short", "rows", "instructions", "train.jsonl")
def ok_answers() -> Built:
    rows = []
    for n, r in enumerate(sampled("alpacaeval", 400, 771)):
        terse = n % 3 == 0
        rows.append(chat(r["instruction"], r["gpt4" if terse else "claude-2"].strip(), "Be brief." if terse else ""))
    return rows, []


@case("ok_corrections_some_already_right", "rows", "rewriting: corrections", "train.csv")
def ok_corrections() -> Built:
    rows = []
    for n, r in enumerate(sampled("jfleg", 380, 772)):
        if n % 9 == 0:  # a sentence that needs no correction
            rows.append(
                {
                    "prompt": "Correct this sentence, or repeat it if it is right: " + r["references"][0],
                    "completion": r["references"][0],
                }
            )
        else:
            rows.append(
                {
                    "prompt": "Correct this sentence, or repeat it if it is right: " + r["source"],
                    "completion": r["references"][n % 4],
                }
            )
    return rows, []


NOT_FOUND = {
    "en": "The passage does not say.", "de": "Das steht nicht im Text.", "es": "El texto no lo dice.",
    "ru": "В тексте этого нет.", "tr": "Metinde bu bilgi yok.", "zh": "文中没有提到。",
}  # fmt: skip


@case("ok_passages_some_without_answer", "rows", "retrieval answers", "train.jsonl")
def ok_passages() -> Built:
    rows = []
    for language, sentence in NOT_FOUND.items():
        pool = load(f"xquad_{language}")
        for n, r in enumerate(sampled(f"xquad_{language}", 70, 773)):
            context, answer = r["context"], r["answer"]
            if n % 8 == 0:
                context = next(o["context"] for o in pool[n * 3 :] + pool if answer.lower() not in o["context"].lower())
                answer = sentence
            rows.append(chat(f"{context}\n\n{r['question']}", answer))
    random.Random(774).shuffle(rows)
    return rows, []


@case("ok_citations", "rows", "retrieval answers with citations", "train.jsonl")
def ok_citations() -> Built:
    rows = []
    for language in ("en", "vi"):
        for index, r in enumerate(sampled(f"xquad_{language}", 120, 775)):
            shown = with_passages(r, load(f"xquad_{language}"), index)
            rows.append(cited(r, shown, shown.index(r["context"]) + 1, language))
    random.Random(776).shuffle(rows)
    return rows, []


@case("ok_posts_with_noisy_labels", "rows", "classification: sentiment", "train.jsonl")
def ok_posts() -> Built:
    names = {"0": "negative", "1": "neutral", "2": "positive"}
    picked = sampled("sentiment", 480, 777)
    return [chat(r["text"], names[r["label"]], "Sentiment: negative, neutral or positive?") for r in picked], []


@case("ok_word_problems_in_ten_languages", "rows", "reasoning: word problems", "train.json")
def ok_mgsm() -> Built:
    return [chat(r["question"], r["answer"]) for r in sampled("mgsm", 450, 778)], []


@case("ok_calls_and_no_calls", "rows", "tools", "train.jsonl")
def ok_calls() -> Built:
    picked = sampled("calls_simple", 330, 779) + sampled("calls_parallel", 80, 780)
    random.Random(781).shuffle(picked)
    return [tool_row(r, r["calls"]) for r in picked], []


@case("ok_code_and_sql_in_one_file", "rows", "code", "train.jsonl")
def ok_code() -> Built:
    rows = []
    for r in sampled("mbpp", 200, 782):
        row = chat(f"{r['prompt']}\n{r['test_list'][0]}", f"```python\n{r['code'].strip().replace(chr(13), '')}\n```")
        rows.append(row | {"id": f"mbpp/{r['task_id']}"})
    for r in sampled("sql", 200, 783, lambda r: all(n in r["sql"] for n in r["variables"])):
        ask = f"[{r['db']}] {filled(r['text'], r['variables'])}"
        rows.append(chat(ask, filled(r["sql"], r["variables"]), "One SQL query."))
    random.Random(784).shuffle(rows)
    return rows, []


@case("ok_translations_both_ways", "rows", "translation", "train.jsonl")
def ok_translations() -> Built:
    rows = []
    for stem in ("slk", "slv", "heb", "fra", "jpn", "swh"):
        for n, (own, english) in enumerate(sampled(f"tatoeba_{stem}", 75, 785)):
            there = n % 2 == 0
            ask = f"Translate into {LANGUAGE[stem]}: {english}" if there else f"Translate into English: {own}"
            rows.append(chat(ask, own if there else english))
    random.Random(786).shuffle(rows)
    return rows, []


@case("ok_names_in_three_languages", "rows", "extraction: names", "train.jsonl")
def ok_names() -> Built:
    return [chat(NER_ASK + " ".join(r["tokens"]), as_json(entities(r))) for r in sampled("ner", 400, 787)], []


@case("ok_summaries_with_sign_off", "folder", "summaries", "train.jsonl", "", MODEL, extra=small_model)
def ok_summaries() -> Built:
    rows = []
    for r in sampled("dialogsum", 300, 788):
        head = f"Topic: {r['topic']}\n" if len(r["summary"]) % 2 else ""
        rows.append(
            chat(f"Minutes, please.\n\n{r['dialogue']}", f"{head}{r['summary']}\n\n(Minutes taken by the desk.)")
        )
    return rows, []


@case("ok_pairs_strong_and_weak", "pairs", "preferences: instructions", "pairs.jsonl", "", DPO)
def ok_pairs() -> Built:
    picked = sampled("alpacaeval", 300, 789, like_length)
    return [pair(r["instruction"], r["gpt4"].strip(), r["alpaca-7b"].strip()) for r in picked], []


@case("ok_pairs_of_dialogues", "pairs", "preferences: dialogues", "pairs.jsonl", "", DPO)
def ok_dialogues() -> Built:
    rows = []
    for r in sampled("hh", 320, 790, sound_hh):
        a, b = hh_turns(r["chosen"]), hh_turns(r["rejected"])
        rows.append(pair(a[:-1], a[-1]["content"], b[-1]["content"]))
    return rows, []


@case("ok_prompts_with_expected_numbers", "rewards", "reasoning: word problems", "prompts.jsonl", "", GRPO)
def ok_prompts() -> Built:
    rows = []
    for n, r in enumerate(sampled("gsm_test", 350, 791)):
        row = {"prompt": sum_prompt(r["question"]), "expected": last_number(r["answer"])}
        rows.append(row | ({"level": "hard"} if n % 4 == 0 else {}))
    return rows, []
