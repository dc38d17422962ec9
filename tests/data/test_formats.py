import json

import pytest
from trl import extract_prompt

from ft_notebooks.data.formats import as_chat, as_preference

USER, ANSWER, OTHER = (
    {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No"))
)
CHAT = {"messages": [USER, ANSWER]}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}],
}
RESULT = {"role": "tool", "name": "f", "tool_call_id": "1", "content": ""}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
QUESTION = {"role": "user", "content": "Add.\n\n1 and 2"}


def shared(*turns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def refused(as_row, row):
    defects = as_row(row)[1]
    assert defects
    return "\n".join(defects)


# --- conversations


READ = [
    (CHAT, CHAT),
    ({"messages": [USER, CALL, RESULT, RESULT, ANSWER], "tools": TOOLS}, None),
    ({"messages": [USER, CALL]}, None),
    ({"messages": [USER, {**ANSWER, "reasoning_content": "Well."}, USER, {**ANSWER, "thinking": "Hm."}]}, None),
    ({"messages": [USER, {**CALL, "content": ""}]}, None),
    ({"messages": [USER, {**CALL, "content": None}]}, None),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}]}, None),
    ({"messages": [USER, {**ANSWER, "tool_calls": None, "name": None}], "tools": []}, CHAT),
    ({"messages": json.dumps(CHAT["messages"]), "tools": json.dumps(TOOLS)}, {**CHAT, "tools": TOOLS}),
    ({**CHAT, "prompt": "Hi", "id": 3, "chosen": "a", "rejected": "b"}, CHAT),
    ({"conversations": CHAT["messages"]}, CHAT),
    (shared(("human", "Hi"), ("gpt", "Yes")), CHAT),
    (shared(("user", "Hi"), ("chatgpt", "Yes")), CHAT),
    (
        {**shared(("human", "Hi"), ("assistant", "Yes")), "system": "S"},
        {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
    ),
    (
        {**shared(("system", "S"), ("human", "Hi"), ("bing", "Yes")), "system": "S"},
        {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi", "weight": None}, {"role": "assistant", "content": "Yes"}]},
        CHAT,
    ),
    (
        shared(
            ("human", "Hi"), ("function_call", '{"name": "f", "arguments": {}}'), ("observation", ""), ("gpt", "Yes")
        ),
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
                {"role": "tool", "content": ""},
                ANSWER,
            ]
        },
    ),
    (
        shared(("human", "Hi"), ("function_call", '[{"name": "f"}, {"name": "g"}]')),
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": n}} for n in "fg"]},
            ]
        },
    ),
    ({"prompt": "Hi", "completion": "Yes"}, CHAT),
    ({"prompt": [USER], "completion": [ANSWER]}, CHAT),
    ({"prompt": [USER, OTHER, USER], "completion": ANSWER}, {"messages": [USER, OTHER, USER, ANSWER]}),
    ({"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER]), "tools": TOOLS}, {**CHAT, "tools": TOOLS}),
    (
        {"prompt": "[1, 2]", "completion": "{}"},
        {"messages": [{"role": "user", "content": "[1, 2]"}, {"role": "assistant", "content": "{}"}]},
    ),
    (
        {"prompt": "Hi", "completion": '[{"from": "Oslo"}]'},
        {"messages": [USER, {"role": "assistant", "content": '[{"from": "Oslo"}]'}]},
    ),
    (ALPACA, {"messages": [QUESTION, {"role": "assistant", "content": "3"}]}),
    (
        {**ALPACA, "text": "as published", "prompt": "rendered", "history": [], "system": ""},
        {"messages": [QUESTION, {"role": "assistant", "content": "3"}]},
    ),
    (
        {**ALPACA, "history": [["Hi", "Yes"]], "system": "S", "tools": TOOLS},
        {
            "messages": [
                {"role": "system", "content": "S"},
                USER,
                ANSWER,
                QUESTION,
                {"role": "assistant", "content": "3"},
            ],
            "tools": TOOLS,
        },
    ),
    ({**ALPACA, "chosen": "3", "rejected": "4"}, {"messages": [QUESTION, {"role": "assistant", "content": "3"}]}),
]


@pytest.mark.parametrize("row, expected", READ, ids=range(len(READ)))
def test_a_chat_is_read_from_every_format(row, expected):
    before = json.dumps(row)
    assert as_chat(row) == (expected or row, [])
    assert json.dumps(row) == before  # and the row is left as it was


NO_CHAT = {
    "the row has the keys ['chosen', 'rejected']": {"chosen": "a", "rejected": "b"},
    '"messages" and "conversations" in one row are ambiguous; keep the one': {**CHAT, **shared(("human", "Hi"))},
    '"messages" and "completion" in one row are ambiguous': {**CHAT, "prompt": "a", "completion": "b"},
    '"completion" and "instruction" in one row are ambiguous': {**ALPACA, "prompt": "a", "completion": "b"},
    '"conversations" and "text" in one row are ambiguous': {**shared(("human", "Hi")), "text": "a"},
    '"system" and a first message with this role are ambiguous': {
        "messages": [{"role": "system", "content": "T"}, USER, ANSWER],
        "system": "S",
    },
    'the row has the "system" 3; it must be a text': {**CHAT, "system": 3},
    "\"tools\" is {'name': 'f'}; it must be a list of tools": {**CHAT, "tools": {"name": "f"}},
    "\"tools\" is a text that is not JSON ('f(x)'...); write it with json.dumps": {**CHAT, "tools": "f(x)"},
    "tool 1 is {'type': 'function'}; it needs a \"name\"": {**CHAT, "tools": [{"type": "function"}]},
    'the row has no "prompt"': {"completion": "b"},
    'the row has a blank "completion"': {"prompt": "a", "completion": " "},
    'message 1 of "prompt" has no "content"; every message needs "role" and "content"': {
        "prompt": [{"role": "user"}],
        "completion": "b",
    },
    '"prompt" is a text that is not JSON ("[{\'role\': \'u"...); write it with json.dumps': {
        "prompt": str([USER]),
        "completion": "b",
    },
    '"completion" is a text that is not JSON (\'[\\x00{"role": "': {
        "prompt": "a",
        "completion": json.dumps([ANSWER]).replace("[", "[\0"),
    },
    'the row has the "completion" 3; it must be a text': {"prompt": "a", "completion": 3},
    'message 2 has no "value"; every message needs "from" and "value"': {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt"}]
    },
    'message 1 has a blank "value"': shared(("human", " "), ("gpt", "Yes")),
    'message 1 has "weight" (0), which would be lost': {
        "conversations": [{"from": "human", "value": "Hi", "weight": 0}]
    },
    'message 1 is from \'siri\'; write "human", "gpt", "system", "function_call" or "observation"': shared(
        ("siri", "Hi")
    ),
    "message 2, a function call: \"value\" is a text that is not JSON ('f(x)'": shared(
        ("human", "Hi"), ("function_call", "f(x)")
    ),
    "message 2 has the tool call {'function': None, 'type': 'function'}; it needs a \"name\"": shared(
        ("human", "Hi"), ("function_call", "null")
    ),
    "message 2 has the \"tool_calls\" {'name': 'f'}; it must be a list": {
        "messages": [USER, {"role": "assistant", "tool_calls": {"name": "f"}}]
    },
    'message 2 has an empty "tool_calls"; fill it or take it out': {"messages": [USER, {**ANSWER, "tool_calls": []}]},
    'its "arguments" are a text that is not JSON': {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]
    },
    'its "arguments" must be an object': {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]
    },
    'message 1 has "tool_calls" ([{\'name\': \'f\'}]), which would be lost; a message is "role" and "content" alone': {
        "messages": [{**USER, "tool_calls": [{"name": "f"}]}]
    },
    'message 2 has "name" (\'Ann\'), which would be lost; an answer is "role"': {
        "messages": [USER, {**ANSWER, "name": "Ann"}]
    },
    'message 2 has a blank "content"': {
        "messages": [USER, {"role": "assistant", "content": "", "reasoning_content": "Well."}]
    },
    'message 1 has "k\\ud800" (1), which would be lost': {"messages": [{**USER, "k\ud800": 1}]},
    "message 2 is a tool's and follows no tool call; put the assistant's call before it": {
        "messages": [USER, RESULT, ANSWER]
    },
    "the last message is the tool's; add the assistant's answer": {"messages": [USER, CALL, RESULT]},
    'message 1 has the role \'developer\'; the roles are "system", "user", "assistant" and "tool"; write "system"': {
        "messages": [{"role": "developer", "content": "a"}]
    },
    "turn 1 of \"history\" is ['Hi']; it must be [question, answer]": {**ALPACA, "history": [["Hi"]]},
    'turn 1 of "history": the row has a blank "answer"': {**ALPACA, "history": [["Hi", ""]]},
    "\"history\" is {'Hi': 'Yes'}; it must be a list of [question, answer]": {**ALPACA, "history": {"Hi": "Yes"}},
}


@pytest.mark.parametrize("words, row", list(NO_CHAT.items()), ids=range(len(NO_CHAT)))
def test_what_is_no_chat_is_refused_with_the_cure(words, row):
    assert words in refused(as_chat, row)


# --- preferences


WANTED = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
PAIRS = [
    (WANTED, WANTED),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, WANTED),
    ({"prompt": "Hi", "chosen": [ANSWER], "rejected": {"role": "assistant", "content": "No"}}, WANTED),
    ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, WANTED),
    (
        {
            "prompt": "Hi",
            "chosen": [USER, ANSWER],
            "rejected": [USER, OTHER],
            "messages": [USER, ANSWER],
            "score_chosen": 1,
        },
        WANTED,
    ),
    ({"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, WANTED),
    ({"chosen": json.dumps([USER, ANSWER]), "rejected": json.dumps([USER, OTHER])}, WANTED),
    ({"instruction": "Hi", "input": "", "output": "Yes", "chosen": "Yes", "rejected": "No"}, WANTED),
    (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        WANTED,
    ),
    ({"messages": [USER], "chosen": ANSWER, "rejected": OTHER}, WANTED),
    (
        {**WANTED, "tools": TOOLS, "system": "S"},
        {**WANTED, "prompt": [{"role": "system", "content": "S"}, USER], "tools": TOOLS},
    ),
    (
        {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]},
        {"prompt": [USER, ANSWER, USER], "chosen": [ANSWER], "rejected": [OTHER]},
    ),
    (
        {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, OTHER, USER, ANSWER]},
        {"prompt": [USER], "chosen": [ANSWER, USER, ANSWER], "rejected": [OTHER, USER, ANSWER]},
    ),
    (
        {"prompt": [USER], "chosen": [CALL], "rejected": [OTHER]},
        {"prompt": [USER], "chosen": [CALL], "rejected": [OTHER]},
    ),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": [ANSWER]}, {**WANTED, "rejected": [ANSWER]}),
    ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, {**WANTED, "rejected": [ANSWER]}),
    ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, {**WANTED, "rejected": [ANSWER]}),
    ({"prompt": [USER, CALL, RESULT], "chosen": "Yes", "rejected": "No"}, {**WANTED, "prompt": [USER, CALL, RESULT]}),
]


@pytest.mark.parametrize("row, expected", PAIRS, ids=range(len(PAIRS)))
def test_a_preference_is_read_from_every_format(row, expected):
    before = json.dumps(row)
    assert as_preference(row) == (expected, [])
    assert json.dumps(row) == before
    if (
        set(row) == {"chosen", "rejected"}
        and expected["chosen"] != expected["rejected"]
        and isinstance(row["chosen"], list)
    ):
        assert extract_prompt(row) == expected


NO_PAIR = {
    'the row has the keys [\'messages\']; it must be {"prompt", "chosen", "rejected"}': CHAT,
    'the row has no "rejected"; it must be': {"prompt": "a", "chosen": "b"},
    'the row has no "chosen"; it must be': {"prompt": "a", "rejected": "b", "chosen": None},
    'the row has no "prompt"': {"chosen": "a", "rejected": "b"},
    '"chosen" and "rejected" differ in message 1, before the answer; give them one prompt': {
        "chosen": [USER, ANSWER],
        "rejected": [{**USER, "content": "Bye"}, ANSWER],
    },
    '"chosen" and "rejected" differ in message 1, before': {"chosen": [USER, ANSWER], "rejected": [OTHER]},
    '"chosen" and "rejected" differ in message 3, before': {
        "chosen": [USER, ANSWER, USER, ANSWER],
        "rejected": [USER, ANSWER, {**USER, "content": "Bye"}, ANSWER],
    },
    'one of "chosen" and "rejected" is the beginning of the other': {
        "chosen": [USER, ANSWER],
        "rejected": [USER, ANSWER, USER, ANSWER],
    },
    '"prompt" (\'Bye\') is not the beginning of "chosen"': {
        "prompt": "Bye",
        "chosen": [USER, ANSWER],
        "rejected": [USER, OTHER],
    },
    '"prompt" and "instruction" in one row are ambiguous': {
        "prompt": "a",
        "instruction": "b",
        "chosen": "c",
        "rejected": "d",
    },
    'in "chosen", message 2 is the assistant\'s and follows neither a user nor a tool message': {
        "prompt": [ANSWER],
        "chosen": "a",
        "rejected": "b",
    },
    'in "rejected", the last message is the user\'s': {"prompt": "Hi", "chosen": [ANSWER], "rejected": [OTHER, USER]},
    'in "chosen", no message is the assistant\'s': {"chosen": [USER], "rejected": [USER]},
    'message 1 of "chosen" has no "content"': {"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "b"},
    'the row has a blank "rejected"': {"prompt": "a", "chosen": "b", "rejected": " "},
    'the row has a blank "prompt"': {"prompt": "", "chosen": "b", "rejected": "c"},
    'the row has the "chosen" 3; it must be a text': {"prompt": "a", "chosen": 3, "rejected": "c"},
    '"tools" is 3; it must be a list of tools': {**WANTED, "tools": 3},
    'the row has "images", which its answer may be about': {**WANTED, "images": ["cat.png"]},
}


@pytest.mark.parametrize("words, row", list(NO_PAIR.items()), ids=range(len(NO_PAIR)))
def test_what_is_no_preference_is_refused_with_the_cure(words, row):
    assert words in refused(as_preference, row)


@pytest.mark.parametrize("as_row", [as_chat, as_preference])
@pytest.mark.parametrize(
    "row, words",
    [
        (7, "the row is 7; it must be an object, {"),
        ({}, "the row has the keys []; it must be {"),
        (
            json.JSONDecodeError("Expecting value", "a", 0),
            "not JSON at column 1: Expecting value; write the row with json.dumps",
        ),
        (UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, ""), "the byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (EOFError(), "no rows; a row is {"),
        (ValueError("the disk is tired"), "not read: the disk is tired"),
    ],
)
def test_what_stands_in_the_place_of_a_row_is_said(as_row, row, words):
    assert refused(as_row, row).startswith(words)


ASKED = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "a cat"}]
PART = {"type": "text", "text": "What is this?"}
MEDIA = {
    "a path": {"messages": ASKED, "image": "cat.png"},
    "several": {"messages": ASKED, "images": [{"bytes": b"", "path": "cat.png"}]},
    "LLaVA's": {
        "image": "cat.png",
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a cat"}],
    },
    "a part": {"messages": [{"role": "user", "content": [{"type": "image"}, PART]}, ASKED[1]]},
    "an address": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}, PART]}, ASKED[1]]},
    "a sound": {"messages": [{"role": "user", "content": [{"type": "input_audio"}, PART]}, ASKED[1]]},
}


@pytest.mark.parametrize("row", MEDIA.values(), ids=MEDIA)
def test_an_answer_about_an_image_is_not_trained_without_it(row):
    assert "train with TRL and the model's processor" in refused(as_chat, row)


@pytest.mark.parametrize("empty", [None, [], ""])
def test_an_empty_column_of_images_is_no_image(empty):
    assert as_chat({"messages": ASKED, "images": empty}) == ({"messages": ASKED}, [])
