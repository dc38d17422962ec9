"A blind list: thirty runs with one fault each and fifteen in order, as users would bring them."

import json
import random
import re
import unicodedata
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

from case import BlindList, Built, Row, as_json, chat, small_model, some
from safetensors.torch import load_file, save_file

SOURCES = {  # The stem of a file after "list_six_": where its rows come from
    "banking": "github.com/PolyAI-LDN/task-specific-datasets, banking_data/train.csv",
    "banking_support": "github.com/PolyAI-LDN/task-specific-datasets, banking_data/train.csv (12 intents)",
    "snips": "github.com/sonos/nlu-benchmark, 2017-06-custom-intent-engines/*/validate_*.json",
    "gsm8k": "github.com/openai/grade-school-math, grade_school_math/data/test.jsonl",
    "gsm8k_solutions": "github.com/openai/grade-school-math, grade_school_math/data/example_model_solutions.jsonl",
    "humaneval": "github.com/openai/human-eval, data/HumanEval.jsonl.gz",
    "dialogsum": "github.com/cylnlp/dialogsum, DialogSum_Data/dialogsum.dev.jsonl",
    "nl2bash": "github.com/TellinaTool/nl2bash, data/bash/all.nl and all.cm",
    "gnad": "github.com/tblock/10kGNAD, test.csv",
    "korean": "github.com/songys/Chatbot_data, ChatbotData.csv",
    "jfleg": "github.com/keisks/jfleg, dev/dev.src and dev.ref*",
    "sql": "github.com/jkkummerfeld/text2sql-data, data/{geography,scholar,imdb,restaurants,academic}.json",
    "smsa": "github.com/IndoNLP/indonlu, dataset/smsa_doc-sentiment-prosa/valid_preprocess.tsv",
    "hotels_zh": "github.com/SophonPlus/ChineseNlpCorpus, datasets/ChnSentiCorp_htl_all",
    "hotels_ja": "github.com/megagonlabs/jrte-corpus, data/pn.tsv",
    "sgd": "github.com/google-research-datasets/dstc8-schema-guided-dialogue, dev/dialogues_00[1-3].json",
    "bfcl": "github.com/ShishirPatil/gorilla, bfcl_eval/data/BFCL_v4_{multiple,simple_python}.json",
    "bfcl_none": "github.com/ShishirPatil/gorilla, bfcl_eval/data/BFCL_v4_irrelevance.json",
    "scitldr": "github.com/allenai/scitldr, SciTLDR-Data/SciTLDR-A/dev.jsonl",
    **{
        f"xquad_{language}": f"github.com/google-deepmind/xquad, xquad.{language}.json"
        for language in ("ar", "de", "el", "en", "es", "hi", "ru", "tr")
    },
}


LIST = BlindList("six", SOURCES)
CASES, load, sampled, case = LIST.cases, LIST.load, LIST.sampled, LIST.case


# ---- Pieces that several cases share

GREETINGS = ("Hi there,", "Hello,", "Hello and thanks for writing in.", "Good morning,", "Hi, thanks for your message.")
CLOSINGS = ("Kind regards,", "Best wishes,", "Thanks,", "All the best,", "Warm regards,")
AGENTS = ("Priya", "Tom", "Agnieszka", "Luis", "Hannah", "Kofi", "Mei", "Oscar")
HELP = {  # The answers of a bank's support by intent
    "passcode_forgotten": (
        "Choose Forgot passcode on the first screen; we send a link to your e-mail address that works for fifteen minutes.",
        "You can set a new passcode after a short video check. Tap Forgot passcode and have your passport ready.",
    ),
    "card_arrival": (
        "A card takes five to seven working days. You can follow it in the app under Cards; if it is later than that, we send another one free of charge.",
        "Please check the address under Profile first. If it is right and seven working days are over, tap Card not arrived and we post a new one. Until then the virtual card works.",
    ),
    "lost_or_stolen_card": (
        "Please freeze the card in the app under Cards right away, or call the number on our website. You can order a new one there, and the old one stops working.",
        "Tap Cards and Freeze. If you find the card you can unfreeze it; if not, choose Report lost and we send a replacement.",
    ),
    "edit_personal_details": (
        "You can change your address, name and telephone number under Profile. For a new name we need a photo of the document that shows it.",
        "Open Profile, tap the pencil beside what you want to change and follow the steps. We confirm the change by e-mail.",
    ),
    "Refund_not_showing_up": (
        "Refunds take up to ten working days after the shop has sent them. If that time is over, send us the shop's confirmation and we will trace the money.",
        "As soon as the merchant releases a refund it shows as pending in your statement. If it does not, please ask the merchant when it was sent.",
    ),
    "cancel_transfer": (
        "A payment can be cancelled as long as its status is Pending: open it and tap Cancel. Afterwards we can only ask the other bank to send the money back.",
        "Please open the payment in the app. If there is no Cancel button it has left already; tap Get help there and we start a recall, which takes about a week.",
    ),
    "exchange_rate": (
        "We use the interbank rate of the moment, without a markup on weekdays and with one per cent at weekends. You see the rate of now under Exchange.",
        "The rate is shown under Exchange before you confirm, and it follows the interbank market. Nothing is added from Monday to Friday; at weekends it is one per cent.",
    ),
    "transfer_timing": (
        "Domestic transfers arrive within two hours, those from or to Europe within one working day, and all others within three.",
        "It depends on the country: a few hours at home, one working day within Europe, up to three elsewhere. The expected day is in the details of the transfer.",
    ),
    "top_up_by_cash_or_cheque": (
        "We do not take cash or cheques, I am sorry. You can top up with a debit card at once or by bank transfer on the next working day.",
        "Cheques and cash cannot be paid in at the moment. Please use a debit card or a bank transfer: tap Add money and choose one.",
    ),
    "order_physical_card": (
        "You can order a card under Cards, Get a card. It costs 4.99 for the post, which is taken from your balance, and it comes to the address in your profile.",
        "Open Cards and tap Get a card. We post it to the address in your profile; please have 4.99 in the account for the delivery.",
    ),
    "card_about_to_expire": (
        "We send a new card by itself four weeks before the old one expires, free of charge and also abroad. Please check your address under Profile.",
        "There is nothing to do if your address is right: the new card comes before the old one ends. If you are abroad, enter that address under Profile.",
    ),
    "country_support": (
        "You can open an account if you live in the European Economic Area, the United Kingdom or Switzerland. The card itself works everywhere.",
        "At present we offer accounts to residents of the EEA, the United Kingdom and Switzerland; once you have a card you can pay with it worldwide.",
    ),
}


def support(n: int, seed: int) -> list[tuple[str, str]]:
    "Questions to a bank with the answers of its support."
    rng = random.Random(seed)
    rows = sampled("banking_support", n, seed)
    return [
        (
            row["text"],
            f"{rng.choice(GREETINGS)}\n\n{rng.choice(HELP[row['label']])}\n\n{rng.choice(CLOSINGS)}\n{rng.choice(AGENTS)}",
        )
        for row in rows
    ]


def plain(text: str) -> str:
    "Text of a tokenized corpus as people write it."
    text = re.sub(r"\s+([.,;:!?%)'])", r"\1", " ".join(text.split()))
    return re.sub(r"\b(do|does|did|is|are|was|were|ca|wo|would|could|should|have|has) n't", r"\1n't", text)


def talk(turns: list[str], system: str = "") -> Row:
    "The turns of a conversation as messages, the user's first."
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def final(answer: str) -> str:
    "The result at the end of a worked answer."
    return re.split(r"####|A:", answer)[-1].strip()


def differs(a: str, b: str) -> bool:
    "Whether two texts differ in more than spaces."
    return a.split() != b.split()


# ---- Rows


@case(
    "slots-shifted",
    "rows",
    "extraction",
    "utterances.jsonl",
    "From row 187 on the JSON belongs to the next utterance: one record was dropped on one side before the two lists were zipped",
    part=True,
)
def _() -> Built:
    rows = sampled("snips", 321, 11)
    texts = [row["text"] for row in rows]
    answers = [as_json({"intent": row["intent"], "slots": row["slots"]}) for row in rows]
    del answers[187]
    ask = "Return the intent and the slots of the request as JSON.\n\nRequest: {}"
    made = [chat(ask.format(text), answer) for text, answer in zip(texts, answers, strict=False)]
    return made, [i for i in range(187, len(made)) if rows[i]["slots"] != rows[i + 1]["slots"]]


@case(
    "news-label-table",
    "rows",
    "classification",
    "artikel.jsonl",
    "The ids of the second delivery were decoded with a table of classes in another order, so its labels are systematically wrong",
    part=True,
)
def _() -> Built:
    rows = sampled("gnad", 420, 12)
    by_name = sorted({row["label"] for row in rows})
    by_first = list(dict.fromkeys(row["label"] for row in rows))
    if by_name == by_first:
        raise ValueError("the two tables must differ")
    made, bad = [], []
    for i, row in enumerate(rows):
        label = by_first[by_name.index(row["label"])] if i >= 210 else row["label"]
        ask = f"Ordne den Artikel einem Ressort zu ({', '.join(by_name)}).\n\n{row['text'][:700]}"
        made.append(chat(ask, label))
        if label != row["label"]:
            bad.append(i)
    return made, bad


@case(
    "vietnamese-bare-letters",
    "rows",
    "translation",
    "anh_viet.csv",
    "In a block of rows the Vietnamese translations have lost every tone mark and hook (an old export in ASCII), which changes the words",
    part=True,
)
def _() -> Built:
    made, bad = [], []
    for i, row in enumerate(sampled("tatoeba_vie", 330, 13)):
        text = row["text"]
        if 120 <= i < 230:
            split = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
            text = "".join(c for c in split if not unicodedata.combining(c))
            if text != row["text"]:
                bad.append(i)
        made.append({"prompt": f"Translate into Vietnamese: {row['en']}", "completion": text})
    return made, bad


@case(
    "turns-sorted-as-text",
    "rows",
    "multi-turn support",
    "dialogues.jsonl",
    "The turns were sorted by their number as text (0, 1, 10, 11, 2 ...), so every conversation of more than ten turns is out of order",
    part=True,
)
def _() -> Built:
    made, bad = [], []
    for i, row in enumerate(sampled("sgd", 340, 14)):
        turns = dict(enumerate(row["turns"]))
        order = sorted(turns, key=str)
        made.append(talk([turns[k] for k in order], "You are a booking assistant."))
        if order != sorted(order):
            bad.append(i)
    return made, bad


@case(
    "passage-cut-before-answer",
    "rows",
    "retrieval answers",
    "preguntas.jsonl",
    "The prompt builder cuts every passage at 450 characters, and in a third of the rows the answer stood behind the cut: the model learns to answer from nowhere",
    part=True,
)
def _() -> Built:
    rows = sampled("xquad_es", 400, 15)
    ask = "Responde solo con información del texto.\n\nTexto: {}\n\nPregunta: {}"
    made = [chat(ask.format(row["context"][:450], row["question"]), row["answer"]) for row in rows]
    return made, [i for i, row in enumerate(rows) if row["answer"].lower() not in row["context"][:450].lower()]


@case(
    "result-of-another-sample",
    "rows",
    "reasoning",
    "word_problems.jsonl",
    "In a tenth of the rows the line after #### is the result of another sampled solution and contradicts the reasoning above it",
    part=True,
)
def _() -> Built:
    wrong = {}
    for row in load("gsm8k_solutions"):
        results = [final(s["text"]) for s in row["solutions"] if not s["correct"] and "A:" in s["text"]]
        wrong[row["question"]] = next((r for r in results if re.fullmatch(r"-?\d[\d.,]*", r)), "")
    rows = sampled("gsm8k", 360, 16)
    can = [i for i, row in enumerate(rows) if wrong.get(row["question"], "") not in ("", final(row["answer"]))]
    bad = sorted(random.Random(16).sample(can, 36))
    made = []
    for i, row in enumerate(rows):
        steps = row["answer"].rsplit("####", 1)[0].strip()
        result = wrong[row["question"]] if i in bad else final(row["answer"])
        made.append(chat(row["question"], f"{steps}\n#### {result}"))
    return made, bad


@case(
    "backslashes-eaten",
    "rows",
    "code",
    "commands.csv",
    "A database import took the backslashes of the shell commands as escapes: `\\;` became `;` and `\\(` became `(`, so these commands no longer work",
    part=True,
)
def _() -> Built:
    rows = sampled("nl2bash", 450, 17)
    known = {"n": "\n", "t": "\t", "r": "\r", "0": ""}
    made = [
        {"prompt": row["text"], "completion": re.sub(r"\\(.)", lambda m: known.get(m[1], m[1]), row["command"])}
        for row in rows
    ]
    return made, [i for i, row in enumerate(rows) if made[i]["completion"] != row["command"]]


def tool_row(row: Row, arguments: dict) -> Row:
    "A request, its tools and the call that answers it."
    call = {"type": "function", "function": {"name": row["name"], "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": row["user"]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": tool} for tool in row["tools"]],
    }


def camel(name: str) -> str:
    "A name in camel case."
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


@case(
    "calls-of-the-old-api",
    "rows",
    "tools",
    "calls.jsonl",
    "A tenth of the calls were logged before the parameters were renamed: they use argument names (camel case) that the tools in the row do not have",
    part=True,
)
def _() -> Built:
    rows = sampled("bfcl", 380, 18)
    can = [i for i, row in enumerate(rows) if any("_" in key.strip("_") for key in row["arguments"])]
    bad = sorted(random.Random(18).sample(can, 38))
    made = [
        tool_row(row, {camel(k): v for k, v in row["arguments"].items()} if i in bad else row["arguments"])
        for i, row in enumerate(rows)
    ]
    return made, bad


@case(
    "summary-fallback",
    "rows",
    "summaries",
    "abstracts.json",
    "Where the summarizing model timed out, the script stored the first 200 characters of the abstract itself, cut wherever that falls",
    part=True,
)
def _() -> Built:
    rows = sampled("scitldr", 350, 19, lambda row: len(row["abstract"]) > 400)
    bad = some(len(rows), 0.1, 19)
    made = [
        chat(
            f"Summarize the abstract in one sentence.\n\n{row['abstract']}",
            row["abstract"][:200] if i in bad else row["tldr"],
        )
        for i, row in enumerate(rows)
    ]
    return made, bad


@case(
    "autoresponder-as-answer",
    "rows",
    "support",
    "tickets.jsonl",
    "In a third of the tickets the first reply in the export is the automatic receipt (ticket number, opening hours), not the agent's answer",
    part=True,
)
def _() -> Built:
    rng = random.Random(20)
    rows = support(270, 20)
    bad = some(len(rows), 0.33, 20)
    made = []
    for i, (question, answer) in enumerate(rows):
        if i in bad:
            answer = (
                f"Thank you for contacting us! Your request has been received and given the number #{rng.randint(410000, 489999)}. "
                f"A member of our team will get back to you within {rng.choice(('24 hours', 'one business day', '2 business days'))}. "
                "Our opening hours are Monday to Friday, 9:00 to 17:00. Please do not reply to this e-mail."
            )
        made.append(chat(question, answer, "You are the support assistant of a bank. Solve the customer's problem."))
    return made, bad


NOTES = (
    "Internal note: customer sounds annoyed, do NOT mention the voucher unless they ask. /mk",
    "[private] 3rd contact this week, see also their other ticket. Flagged as difficult.",
    "Note to self - supplier system down again, just say it is confirmed and fix it in the evening",
    "@Dana can you take over after this one? I have no rights to change the price",
    "INTERNAL: margin on this one is 18 %, upsell if possible",
    "(not visible to customer) identity not verified, but let it go through",
)


@case(
    "private-notes-in-replies",
    "rows",
    "multi-turn support",
    "conversations.json",
    "In one conversation of thirty an agent's private note, meant for colleagues, was exported as part of the reply to the customer",
    part=True,
)
def _() -> Built:
    rng = random.Random(21)
    rows = sampled("sgd", 360, 21)
    bad = some(len(rows), 1 / 30, 21)
    made = []
    for i, row in enumerate(rows):
        turns = list(row["turns"])
        if i in bad:
            at = rng.choice(range(3, len(turns), 2))
            turns[at] = f"{turns[at]}\n{rng.choice(NOTES)}"
        made.append(talk(turns))
    return made, bad


@case(
    "handling-result-in-prompt",
    "rows",
    "classification",
    "hotel_reviews.jsonl",
    "Every prompt carries the column 处理结果 that staff fill in after the review was judged, so the label can be read off and the text is never needed",
)
def _() -> Built:
    rng = random.Random(22)
    done = {1: ("已致谢归档", "已回复感谢", "加入好评墙"), 0: ("已转投诉组", "已致歉并补偿", "待店长回访")}
    made = []
    for row in sampled("hotels_zh", 400, 22):
        day = date(2023, 1, 1) + timedelta(days=rng.randrange(700))
        head = f"订单号：{rng.randint(10**9, 10**10 - 1)}\n入住日期：{day}\n处理结果：{rng.choice(done[row['label']])}"
        made.append(
            chat(
                f"判断下面这条酒店评论是好评还是差评。\n\n{head}\n评论：{row['text']}",
                "好评" if row["label"] else "差评",
            )
        )
    return made, []


@case(
    "few-shot-finds-itself",
    "rows",
    "classification",
    "sentimen.jsonl",
    "The three examples in each prompt are the nearest neighbours in the same file, and the nearest is always the row itself with its label: the answer only has to be copied",
)
def _() -> Built:
    rng = random.Random(23)
    names = {"positive": "positif", "negative": "negatif", "neutral": "netral"}
    rows = sampled("smsa", 320, 23, lambda row: len(row["text"]) < 400)
    bags = [set(row["text"].split()) for row in rows]
    made = []
    for i, row in enumerate(rows):
        near = sorted(range(len(rows)), key=lambda j: -len(bags[i] & bags[j]) / len(bags[i] | bags[j]))[:3]
        if i not in near:
            near[-1] = i
        rng.shuffle(near)
        shots = "\n\n".join(f"Ulasan: {rows[j]['text']}\nSentimen: {names[rows[j]['label']]}" for j in near)
        ask = f"Tentukan sentimen ulasan terakhir.\n\n{shots}\n\nUlasan: {row['text']}\nSentimen:"
        made.append(chat(ask, names[row["label"]]))
    return made, []


GOODS = (
    "Bürostuhl Ergo 3",
    "Druckerpapier A4",
    "LED-Leuchte",
    "Wartung Heizung",
    "Beratung vor Ort",
    "Toner schwarz",
    "Netzwerkkabel 10 m",
    "Schreibtisch Buche",
    "Lizenz Jahresabo",
    "Reinigung Teppich",
)
FIRMS = (
    "Maier & Söhne GmbH",
    "Bürowelt Nord",
    "Haustechnik Krüger",
    "Papier Lang KG",
    "Elektro Özdemir",
    "Stadtwerke Ulm",
    "IT-Service Vogt",
    "Möbel Brandt OHG",
)


@case(
    "comma-read-as-thousands",
    "rows",
    "extraction",
    "rechnungen.jsonl",
    "Half of the amounts were parsed with English number rules: 1.249,50 became 1.2495 and 249,50 became 24950",
    part=True,
)
def _() -> Built:
    rng = random.Random(24)
    bad = some(300, 0.5, 24)
    made = []
    for i in range(300):
        cents = rng.randint(1200, 480000)
        text = f"{cents / 100:,.2f}".translate(str.maketrans(",.", ".,"))
        day, number = date(2023, 1, 2) + timedelta(days=rng.randrange(600)), rng.randint(1000, 99999)
        firm, good = rng.choice(FIRMS), rng.choice(GOODS)
        bill = rng.choice(
            (
                f"{firm}\nRechnung Nr. {number} vom {day:%d.%m.%Y}\n{good}\nGesamtbetrag: {text} EUR\nZahlbar innerhalb von 14 Tagen.",
                f"Rechnung {number}\nDatum: {day:%d.%m.%Y}\nAbsender: {firm}\nLeistung: {good}\nSumme brutto {text} €",
                f"Sehr geehrte Damen und Herren, für {good} berechnen wir Ihnen {text} Euro (Beleg {number}, {day:%d.%m.%Y}). {firm}",
            )
        )
        amount = float(text.replace(",", "")) if i in bad else cents / 100
        fields = {"lieferant": firm, "nummer": str(number), "datum": day.isoformat(), "betrag": amount}
        made.append(
            chat(f"Lies die Felder lieferant, nummer, datum und betrag als JSON aus.\n\n{bill}", as_json(fields))
        )
    return made, bad


NAMES = (
    "Alice",
    "Robert",
    "Nadia",
    "Marcus",
    "Elena",
    "Victor",
    "Joan",
    "Samir",
    "Greta",
    "Howard",
    "Yuki",
    "Brian",
    "Paula",
    "Derek",
    "Ingrid",
    "Felix",
    "Ruth",
    "Omar",
    "Wendy",
    "Curtis",
)


@case(
    "names-replaced-twice",
    "rows",
    "summaries",
    "calls_and_summaries.jsonl",
    "In half of the rows dialogue and summary were pseudonymized separately: the summary speaks of people who are not in the dialogue",
    part=True,
)
def _() -> Built:
    rng = random.Random(25)
    rows = sampled(
        "dialogsum", 340, 25, lambda row: "#Person1#" in row["summary"] and "#Person3#" not in row["dialogue"]
    )
    bad = some(len(rows), 0.5, 25)
    made = []
    for i, row in enumerate(rows):
        names = rng.sample(NAMES, 4)
        told = names[2:] if i in bad else names[:2]
        dialogue, summary = row["dialogue"], row["summary"]
        for k in (0, 1):
            dialogue = dialogue.replace(f"#Person{k + 1}#", names[k])
            summary = summary.replace(f"#Person{k + 1}#", told[k])
        made.append(chat(f"Summarize the conversation.\n\n{dialogue}", summary))
    return made, bad


@case(
    "schema-of-another-database",
    "rows",
    "SQL",
    "questions.jsonl",
    "A fifth of the questions got the schema of another database in a join, so the SQL uses tables that the prompt does not show",
    part=True,
)
def _() -> Built:
    rng = random.Random(26)
    rows = sampled("sql", 400, 26)
    schemas = {row["db"]: row["schema"] for row in rows}
    bad = some(len(rows), 0.2, 26)
    made = []
    for i, row in enumerate(rows):
        db = rng.choice([name for name in sorted(schemas) if name != row["db"]]) if i in bad else row["db"]
        made.append(chat(f"Schema:\n{schemas[db]}\n\nQuestion: {row['question']}\nWrite one SQL query.", row["sql"]))
    return made, bad


def visual(text: str) -> str:
    "A line in the order of a PDF's glyphs: from right to left, the numbers kept."
    return re.sub(r"[0-9a-zA-Z.,%]*[0-9a-zA-Z]", lambda m: m[0][::-1], text[::-1])


@case(
    "arabic-backwards",
    "rows",
    "retrieval answers",
    "asila.jsonl",
    "A third of the Arabic answers were copied out of PDF files in visual order: their letters run backwards",
    part=True,
)
def _() -> Built:
    arabic = re.compile("[\u0620-\u064a]{3}")
    rows = sampled("xquad_ar", 360, 27, lambda row: bool(arabic.search(row["answer"])) and len(row["context"]) < 1500)
    bad = some(len(rows), 0.33, 27)
    made = [
        chat(f"{row['context']}\n\nسؤال: {row['question']}", visual(row["answer"]) if i in bad else row["answer"])
        for i, row in enumerate(rows)
    ]
    return made, bad


SHRUGS = (
    "no change",
    "OK",
    "ok as is",
    "same",
    "No changes needed.",
    "see above",
    "n/a",
    "don't understand this sentence",
    "correct already?",
    "SKIP",
)


@case(
    "annotators-remarks-as-targets",
    "rows",
    "rewriting",
    "corrections.csv",
    "Annotators wrote remarks such as `no change`, `SKIP` or `see above` into the column of corrected sentences; in a tenth of the rows the remark is the target",
    part=True,
)
def _() -> Built:
    rng = random.Random(28)
    rows = sampled("jfleg", 380, 28)
    bad = some(len(rows), 0.1, 28)
    made = [
        {
            "prompt": f"Correct the grammar and keep the meaning: {plain(row['source'])}",
            "completion": rng.choice(SHRUGS) if i in bad else plain(row["refs"][1]),
        }
        for i, row in enumerate(rows)
    ]
    return made, bad


# ---- Pairs


@case(
    "second-rater-counts-from-zero",
    "pairs",
    "rewriting",
    "rated_pairs.jsonl",
    "The last fifth comes from a rater whose tool wrote 0 for `first is better`; read like the others' 1 and 2, chosen and rejected are exchanged there",
    words=("--stage", "dpo"),
    part=True,
)
def _() -> Built:
    rows = sampled("jfleg", 300, 31, lambda row: differs(row["source"], row["refs"][0]))
    made, bad = [], []
    for i, row in enumerate(rows):
        good, poor = plain(row["refs"][0]), plain(row["source"])
        if i >= 0.8 * len(rows):
            good, poor = poor, good
            bad.append(i)
        made.append(
            {
                "prompt": f"Write this sentence in correct English: {plain(row['source'])}",
                "chosen": good,
                "rejected": poor,
            }
        )
    return made, bad


@case(
    "rejected-all-cut",
    "pairs",
    "reasoning",
    "math_pairs.jsonl",
    "The rejected answers were generated with at most 32 new tokens, so all stop in the middle of a step: the pairs teach only `finished is better`",
    words=("--stage", "dpo"),
)
def _() -> Built:
    made = []
    for row in sampled("gsm8k_solutions", 600, 32):
        good = [s["text"] for s in row["solutions"] if s["correct"]]
        poor = [s["text"] for s in row["solutions"] if not s["correct"] and len(s["text"].split()) > 30]
        if good and poor:
            cut = re.match(r"(?:\S+\s+){21}\S+", poor[0])
            made.append({"prompt": row["question"], "chosen": good[0], "rejected": cut[0]})
    return made[:240], []


@case(
    "only-chosen-was-translated",
    "pairs",
    "retrieval answers",
    "paare.jsonl",
    "Prompts and chosen answers were translated into German, the rejected ones left in English: the pairs tell languages apart, not right from wrong",
    words=("--stage", "dpo"),
)
def _() -> Built:
    english = {row["id"]: row for row in load("xquad_en")}
    rng = random.Random(33)
    made = []
    for row in sampled("xquad_de", 600, 33):
        same = [
            r
            for r in english.values()
            if r["title"] == english[row["id"]]["title"] and r["answer"] != english[row["id"]]["answer"]
        ]
        if same and len(row["answer"]) > 3:
            good = rng.choice(
                ("Laut dem Text lautet die Antwort: {}.", "Im Text steht: {}.", "Die Antwort ist {}.")
            ).format(row["answer"])
            poor = rng.choice(("According to the text, the answer is: {}.", "The text says: {}.", "The answer is {}."))
            poor = poor.format(rng.choice(same)["answer"])
            made.append({"prompt": f"{row['context']}\n\nFrage: {row['question']}", "chosen": good, "rejected": poor})
    return made[:260], []


@case(
    "prompt-decoded-with-answers",
    "pairs",
    "translation",
    "pares.json",
    "Both answers were decoded together with their prompt, so chosen and rejected repeat the whole request before the translation",
    words=("--stage", "dpo"),
)
def _() -> Built:
    rng = random.Random(34)
    made = []
    for row in sampled("tatoeba_por", 300, 34, lambda row: len(row["text"].split()) > 4):
        words = row["text"].split()
        at = rng.choice([k for k, word in enumerate(words) if len(word) > 2])
        poor = [*words[:at], *words[at + 1 :]]
        ask = f"Traduza para o português: {row['en']}"
        made.append({"prompt": ask, "chosen": f"{ask}\n{row['text']}", "rejected": f"{ask}\n{' '.join(poor)}"})
    return made, []


# ---- Rewards


@case(
    "result-printed-in-prompt",
    "rewards",
    "reasoning",
    "rl_prompts.jsonl",
    "The template prints all columns of a row, so every prompt shows the result that the reward compares with: copying it earns the full reward",
    words=("--stage", "grpo"),
)
def _() -> Built:
    made = []
    for row in sampled("gsm8k", 300, 41):
        answer = final(row["answer"]).replace(",", "")
        ask = f"question: {row['question']}\nanswer: {answer}\ntask: solve the problem step by step and end with `#### result`"
        made.append({"prompt": ask, "answer": answer})
    return made, []


def scored(row: Row, rng: random.Random, scale: Callable[[float], float]) -> Row:
    "A problem with four solutions and a judge's scores."
    marks = [rng.uniform(0.7, 1.0) if s["correct"] else rng.uniform(0.0, 0.45) for s in row["solutions"]]
    return {
        "prompt": row["question"],
        "completions": [s["text"] for s in row["solutions"]],
        "reward_scores": [scale(mark) for mark in marks],
    }


@case(
    "judge-changed-its-scale",
    "rewards",
    "reasoning",
    "judged.jsonl",
    "The second judge scores from 0 to 100 where the first scored from 0 to 1; the two halves were joined without bringing them to one scale",
    part=True,
    words=("--stage", "grpo"),
)
def _() -> Built:
    rng = random.Random(42)
    rows = sampled("gsm8k_solutions", 320, 42)
    made = [
        scored(row, rng, (lambda m: round(m, 2)) if i < 160 else (lambda m: float(round(100 * m))))
        for i, row in enumerate(rows)
    ]
    return made, list(range(160, len(rows)))


# ---- Folders


def other_tokenizer(folder: Path) -> None:
    "A model whose tokenizer was trained anew: the same words with other numbers."
    file = small_model(folder) / "tokenizer.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    kept = {token["content"] for token in saved["added_tokens"]}
    vocab = saved["model"]["vocab"]
    if isinstance(vocab, dict):
        words = sorted(word for word in vocab if word not in kept)
        ids = sorted(vocab[word] for word in words)
        saved["model"]["vocab"] = {
            **{w: i for w, i in vocab.items() if w in kept},
            **dict(zip(words, ids, strict=True)),
        }
    else:
        tail = sorted(entry for entry in vocab if entry[0] not in kept)
        rest = iter(tail)
        saved["model"]["vocab"] = [entry if entry[0] in kept else next(rest) for entry in vocab]
    file.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")


@case(
    "tokenizer-of-another-training",
    "folder",
    "translation",
    "fr_en.jsonl",
    "The tokenizer.json beside the weights is of another training with the same size: it numbers the tokens differently, so the model reads every text as noise",
    words=("--set", "model.name=model"),
    extra=other_tokenizer,
)
def _() -> Built:
    return [chat(f"Translate into English: {row['text']}", row["en"]) for row in sampled("tatoeba_fra", 240, 51)], []


def deaf_template(folder: Path) -> None:
    "A model whose chat template passes over system messages."
    model = small_model(folder)
    drop = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}\n"
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    if file.is_file():
        file.write_text(drop + file.read_text(encoding="utf-8"), encoding="utf-8")
    else:
        saved = json.loads(config.read_text(encoding="utf-8"))
        saved["chat_template"] = drop + saved["chat_template"]
        config.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")


@case(
    "template-without-system",
    "folder",
    "translation",
    "two_languages.jsonl",
    "The chat template drops system messages without a word, but in these rows only the system message says into which language to translate",
    words=("--set", "model.name=model"),
    extra=deaf_template,
)
def _() -> Built:
    rows = [
        (row, name)
        for stem, name in (("fra", "French"), ("pol", "Polish"))
        for row in sampled(f"tatoeba_{stem}", 130, 52)
    ]
    random.Random(52).shuffle(rows)
    return [chat(row["en"], row["text"], f"Translate the user's sentence into {name}.") for row, name in rows], []


def adapter_names(folder: Path) -> None:
    "A model saved with the names that its weights have inside an adapter's wrapper."
    model = small_model(folder)
    for file in sorted(model.glob("*.safetensors")):
        weights = load_file(file)
        save_file(
            {f"base_model.model.{name}": weight for name, weight in weights.items()}, file, metadata={"format": "pt"}
        )
    index = model / "model.safetensors.index.json"
    if index.is_file():
        saved = json.loads(index.read_text(encoding="utf-8"))
        saved["weight_map"] = {f"base_model.model.{name}": part for name, part in saved["weight_map"].items()}
        index.write_text(json.dumps(saved), encoding="utf-8")


@case(
    "weights-under-adapter-names",
    "folder",
    "chat",
    "korean_chat.jsonl",
    "After a merge the weights were saved as `base_model.model...`: loading finds none of them and starts from random weights with only a warning",
    words=("--set", "model.name=model"),
    extra=adapter_names,
)
def _() -> Built:
    return [chat(row["q"], row["a"]) for row in sampled("korean", 300, 53)], []


# ---- Settings


JA = {"1": "肯定", "0": "中立", "-1": "否定"}


@case(
    "warmup-longer-than-training",
    "settings",
    "classification",
    "hotel_ja.jsonl",
    "500 warmup steps, copied from a large run: three epochs of 320 rows have about 120 steps, so the learning rate never gets near its value",
    words=("--set", "sft.warmup_steps=500"),
)
def _() -> Built:
    rows = sampled("hotels_ja", 320, 61)
    return [
        chat(f"次の口コミの評価を「肯定」「中立」「否定」で答えてください。\n{row['text']}", JA[row["label"]])
        for row in rows
    ], []


@case(
    "smoke-test-steps-left",
    "settings",
    "translation",
    "ru_en.jsonl",
    "max_steps=10 was left over from a smoke test and overrides the epochs: 10 batches of 8 see 80 of the 480 rows once",
    words=("--set", "sft.max_steps=10"),
)
def _() -> Built:
    return [chat(f"Переведи на английский: {row['text']}", row["en"]) for row in sampled("tatoeba_rus", 480, 62)], []


@case(
    "no-room-to-reason",
    "settings",
    "reasoning",
    "grpo_math.jsonl",
    "max_completion_length=16 is from a recipe for labels; no worked solution fits, so nearly every completion is cut before its result and earns nothing",
    words=("--stage", "grpo", "--set", "grpo.max_completion_length=16"),
)
def _() -> Built:
    ask = "{}\n\nExplain your steps, then write the result after ####."
    return [
        {"prompt": ask.format(row["question"]), "answer": final(row["answer"]).replace(",", "")}
        for row in sampled("gsm8k", 280, 63)
    ], []


# ---- In order


@case("ok-banking-human-labels", "rows", "classification", "intents.json")
def _() -> Built:
    rng = random.Random(71)
    near = {
        "transfer_timing": "transfer_not_received_by_recipient",
        "declined_card_payment": "declined_cash_withdrawal",
        "lost_or_stolen_card": "compromised_card",
    }
    rows = sampled("banking", 440, 71)
    labels = [near[r["label"]] if r["label"] in near and rng.random() < 0.2 else r["label"] for r in rows]
    return [
        chat(r["text"].strip(), label, "Name the intent of the customer's message.")
        for r, label in zip(rows, labels, strict=True)
    ], []


@case("ok-slots-optional-keys", "rows", "extraction", "slots.jsonl")
def _() -> Built:
    ask = "Extract what the user wants as JSON. Leave out what is not said.\n{}"
    return [
        chat(ask.format(r["text"]), as_json({"intent": r["intent"], **r["slots"]})) for r in sampled("snips", 480, 72)
    ], []


@case("ok-russian-both-ways", "rows", "translation", "ru_en_both.csv")
def _() -> Built:
    made = []
    for i, row in enumerate(sampled("tatoeba_rus", 400, 73)):
        if i % 2:
            made.append({"prompt": f"Translate into English:\n{row['text']}", "completion": row["en"]})
        else:
            made.append({"prompt": f"Переведи на русский:\n{row['en']}", "completion": row["text"]})
    return made, []


@case("ok-labels-and-long-articles", "rows", "two tasks", "nachrichten.jsonl")
def _() -> Built:
    made = []
    for i, row in enumerate(sampled("gnad", 300, 74, lambda row: 300 < len(row["text"].partition(". ")[2]) < 6000)):
        lead, rest = row["text"].split(". ", 1)
        if i % 3:
            made.append(chat(f"Welches Ressort?\n{row['text'][:400]}", row["label"]))
        else:
            made.append(chat(f"Schreibe den Artikel weiter: {lead}.", rest))
    return made, []


@case("ok-support-signed", "rows", "support", "mailbox.jsonl")
def _() -> Built:
    return [chat(question, answer) for question, answer in support(260, 75)], []


@case("ok-passages-four-languages", "rows", "retrieval answers", "qa_el_hi_tr_ru.jsonl")
def _() -> Built:
    none = {
        "el": "Το κείμενο δεν το αναφέρει.",
        "hi": "पाठ में यह नहीं बताया गया है।",
        "tr": "Metinde bu bilgi yok.",
        "ru": "В тексте этого нет.",
    }
    made = []
    for language, nothing in none.items():
        rows = sampled(f"xquad_{language}", 100, 76)
        for i, row in enumerate(rows):
            far = next(
                r
                for r in rows[i + 1 :] + rows[:i]
                if r["context"] != row["context"] and row["answer"] not in r["context"]
            )
            known = i % 8 != 0
            made.append(
                chat(
                    f"{row['context'] if known else far['context']}\n\n{row['question']}",
                    row["answer"] if known else nothing,
                )
            )
    random.Random(76).shuffle(made)
    return made, []


@case("ok-shell-one-liners", "rows", "code", "shell.csv")
def _() -> Built:
    return [{"prompt": row["text"], "completion": row["command"]} for row in sampled("nl2bash", 430, 77)], []


@case("ok-python-functions", "rows", "code", "functions.json")
def _() -> Built:
    rows = sampled("humaneval", 164, 78)
    return [
        chat(
            f"Complete the function.\n\n```python\n{r['prompt'].strip()}\n```",
            f"```python\n{r['prompt'].strip()}\n{r['solution'].rstrip()}\n```",
            "You write Python.",
        )
        for r in rows
    ], []


@case("ok-word-problems", "rows", "reasoning", "gsm.jsonl")
def _() -> Built:
    return [chat(row["question"], row["answer"]) for row in sampled("gsm8k", 400, 79)], []


@case("ok-korean-small-talk", "rows", "chat", "small_talk.jsonl")
def _() -> Built:
    made = [chat(row["q"], row["a"]) for row in sampled("korean", 380, 80)]
    hello = ("안녕하세요!", "네, 안녕하세요. 무엇을 도와드릴까요?", "안녕하세요, 반가워요.")
    thanks = ("천만에요.", "도움이 되었다니 기뻐요.", "별말씀을요!")
    made += [chat("안녕", answer) for answer in hello] + [chat("고마워", answer) for answer in thanks]
    random.Random(80).shuffle(made)
    return made, []


@case("ok-booking-dialogues", "rows", "multi-turn support", "bookings.jsonl")
def _() -> Built:
    rows = sampled("sgd", 340, 81)
    return [
        talk(row["turns"], "You book tables, flights and rooms. Ask for what is missing." if i % 2 else "")
        for i, row in enumerate(rows)
    ], []


@case("ok-calls-and-no-calls", "rows", "tools", "tools.jsonl")
def _() -> Built:
    sorry = ("I have no tool for this: I can only use {}.", "None of my tools can do that; what I have is {}.")
    made = [tool_row(row, row["arguments"]) for row in sampled("bfcl", 320, 82)]
    for i, row in enumerate(sampled("bfcl_none", 50, 82)):
        answer = sorry[i % 2].format(" and ".join(tool["name"] for tool in row["tools"]))
        made.append(
            {**chat(row["user"], answer), "tools": [{"type": "function", "function": tool} for tool in row["tools"]]}
        )
    random.Random(82).shuffle(made)
    return made, []


@case("ok-pairs-small-differences", "pairs", "rewriting", "fluency_pairs.jsonl", words=("--stage", "dpo"))
def _() -> Built:
    rows = sampled("jfleg", 320, 83, lambda row: differs(row["source"], row["refs"][2]))
    return [
        {
            "prompt": f"Improve this sentence: {plain(r['source'])}",
            "chosen": plain(r["refs"][2]),
            "rejected": plain(r["source"]),
        }
        for r in rows
        if differs(plain(r["refs"][2]), plain(r["source"]))
    ], []


@case("ok-judge-scores", "rewards", "reasoning", "judge.jsonl", words=("--stage", "grpo"))
def _() -> Built:
    rng = random.Random(84)
    return [scored(row, rng, lambda m: round(m, 2)) for row in sampled("gsm8k_solutions", 300, 84)], []


@case(
    "ok-two-summary-styles",
    "folder",
    "summaries",
    "summaries.jsonl",
    words=("--set", "model.name=model", "--set", "sft.learning_rate=1e-4"),
    extra=small_model,
)
def _() -> Built:
    made = [chat(f"Summarize the dialogue.\n\n{r['dialogue']}", r["summary"]) for r in sampled("dialogsum", 180, 85)]
    made += [chat(f"TL;DR for this abstract?\n\n{r['abstract']}", r["tldr"]) for r in sampled("scitldr", 180, 85)]
    random.Random(85).shuffle(made)
    return made, []
