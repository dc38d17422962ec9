"""The judge over real HTTP: a server in its own process, one in a thread that fails as told, and what errors say."""

import functools
import json
import os
import re
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from datasets import Dataset
from small_runs import HANGS

from ft_notebooks.course.judge import chat_endpoint, llm_judge, pairwise_judge
from ft_notebooks.evaluation.metrics import find_scorers
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

KEY = "sk-0123456789abcdef"
ROW = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Friday at noon"}]}


def graded(reply):
    "The score of a judge that replies so."
    return llm_judge("Good?", lambda system, user: reply)("a", "b", ROW)


def asked(answer, expected="e", row=ROW):
    "What a judge is asked about the answer."
    messages = []
    llm_judge("Good?", lambda system, user: messages.append(user) or "1")(answer, expected, row)
    return messages[0]


def completion(content, finish_reason="stop"):
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish_reason}]})


class Handler(BaseHTTPRequestHandler):
    "Takes one of `server.script` after the other: a text, (status, headers, body), 'drop' or 'sleep'; then says 'yes'."

    def do_POST(self):
        headers = {name.title(): value for name, value in self.headers.items()}
        self.server.seen.append((headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        step = self.server.script.pop(0) if self.server.script else "yes"
        if step == "drop":
            self.close_connection = True
            return
        if step == "sleep":
            self.server.woken.wait()  # for the end of the test
            return
        status, headers, body = step if isinstance(step, tuple) else (200, {}, completion(step))
        self.send_response(status)
        sent = {"Content-Type": "application/json", **headers, "Content-Length": len(body.encode())}
        for name, value in sent.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.script, server.woken = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.woken.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def sleeps(monkeypatch):
    found = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return "JUDGE_KEY"


def body(server):
    return server.seen[-1][1]


PROCESS = """
import json, re
from http.server import BaseHTTPRequestHandler, HTTPServer

class Judge(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = re.search(r"\\[answer \\w+\\]\\n(.*)\\n\\[end of answer", sent["messages"][1]["content"], re.DOTALL)
        ok = self.headers["Authorization"] == "Bearer %s" and self.path == "/v1/chat/completions"
        ok = ok and sent["model"] == "m"
        said = "Let me see.\\n\\nGrade: %%d/10" %% (10 if answer and "noon" in answer[1] else 1)
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]})
        self.send_response(200 if ok else 403)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(reply.encode())

server = HTTPServer(("127.0.0.1", 0), Judge)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def process():
    running = subprocess.Popen([sys.executable, "-S", "-c", PROCESS % KEY], stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{int(running.stdout.readline())}/v1"
    running.kill()
    running.wait()
    running.stdout.close()


@pytest.mark.whole
def test_a_judge_in_another_process_grades_what_a_model_says(process, key, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from ft_notebooks.course.judge import chat_endpoint, llm_judge\n"
        f"good = llm_judge('Is it right?', chat_endpoint({process!r}, 'm', key_env={key!r}))\n"
    )
    scorers = find_scorers(["stop_rate", "length", "repetition", f"{mine}:good"])
    assert [scorers["good"](text, "Friday at noon", ROW) for text in ("at noon", "no")] == [1, 0]
    result = evaluate(tiny_model(), tiny_tokenizer(), Dataset.from_list([ROW, ROW]), scorers, max_new_tokens=4)
    assert result.errors == [] and [row["good"] for row in result.rows] == [0, 0]
    assert [row["length"] for row in result.rows] == [len(row["generated"]) for row in result.rows]
    assert [row["stop_rate"] for row in result.rows] == [row["ended"] for row in result.rows]


def test_a_row_that_the_judge_does_not_grade_is_an_error_of_that_row(server):
    server.script = ["yes", "7", "It is good.", "4"]
    grade = llm_judge("Is it right?", chat_endpoint(server.url, "m"))
    result = evaluate(tiny_model(), tiny_tokenizer(), Dataset.from_list([ROW] * 3), {"grade": grade}, max_new_tokens=2)
    assert [row["grade"] for row in result.rows] == [6 / 9, None, 3 / 9]
    assert [(error["row"], error["scorer"]) for error in result.errors] == [(1, "grade")]
    assert "must be a grade from 1 to 10, got 'It is good.'" in result.errors[0]["message"]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, {"model": "m", "temperature": 0}),
        ({"temperature": None}, {"model": "m"}),
        ({"temperature": 1, "seed": 3, "max_tokens": 9}, {"model": "m", "temperature": 1, "seed": 3, "max_tokens": 9}),
    ],
)
def test_the_request_holds_what_was_said_and_nothing_else(server, fields, expected):
    ask = chat_endpoint(server.url + "/", "m", **fields)
    ask("sys", "usér")
    messages = body(server)["messages"]
    assert messages == [{"role": "system", "content": "sys"}, {"role": "user", "content": "usér"}]
    assert {name: value for name, value in body(server).items() if name != "messages"} == expected
    assert "Authorization" not in server.seen[-1][0]


@pytest.mark.parametrize(
    "header, waits",
    [("7", [(7, 7)] * 2), ("1.5", [(1.5, 1.5)] * 2)]
    + [(header, [(0.3, 0.5), (0.7, 1)]) for header in ("soon", None, "0", "nan")],
)
@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_as_it_is_told(server, sleeps, status, header, waits):
    ask = chat_endpoint(server.url, "m")
    server.script = [(status, {"Retry-After": header} if header else {}, "busy")] * 2 + ["done"]
    assert ask("a", "b") == "done" and len(server.seen) == 4
    assert all(low <= slept <= high for slept, (low, high) in zip(sleeps, waits, strict=True))


def test_it_does_not_wait_for_hours(server, sleeps):
    ask = chat_endpoint(server.url, "m")
    server.script = [(429, {"Retry-After": "21600"}, "come back tonight")]
    with pytest.raises(ValueError, match="answered 429: come back tonight"):
        ask("a", "b")
    assert sleeps == []


def test_it_gives_up_after_the_retries_and_says_what_came_last(server, sleeps):
    ask = chat_endpoint(server.url, "m", retries=3)
    server.script = [(500, {}, "out of memory")] * 9
    with pytest.raises(ValueError, match="answered 500: out of memory"):
        ask("a", "b")
    assert len(server.seen) == 1 + 4 and len(sleeps) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 301, 307])
def test_what_asking_again_cannot_change_is_told_at_once(server, sleeps, status):
    ask = chat_endpoint(server.url, "m")
    server.script = [(status, {"Location": server.url + "/elsewhere"}, "no")] * 2
    with pytest.raises(ValueError, match=f"/v1 answered {status}: no"):
        ask("a", "b")
    assert len(server.seen) == 2 and sleeps == []


def test_a_dropped_connection_is_asked_again(server, sleeps):
    ask = chat_endpoint(server.url, "m")
    server.script = ["drop", "drop", "done"]
    assert ask("a", "b") == "done" and len(server.seen) == 4


def test_silence_is_an_error_after_the_timeout(server, monkeypatch):
    send = openai.DefaultHttpxClient.send
    with monkeypatch.context() as patience:  # for the question whether the server is there

        def patient(client, request, **given):
            request.extensions["timeout"] = dict.fromkeys(request.extensions["timeout"], HANGS)
            return send(client, request, **given)

        patience.setattr(openai.DefaultHttpxClient, "send", patient)
        ask = chat_endpoint(server.url, "m", timeout=0.1, retries=0)
    server.script = ["sleep"]
    with pytest.raises(ValueError, match="does not answer: Request timed out"):
        ask("a", "b")


def test_a_server_that_does_not_know_the_model_is_told_before_the_first_row(server):
    server.script = [(404, {}, "The model `m` does not exist")]
    with pytest.raises(ValueError, match="answered 404: The model `m` does not exist"):
        chat_endpoint(server.url, "m")


LEAKS = {
    "refused": (401, {}, f"Incorrect API key provided: {KEY}"),
    "at the edge of what is shown": (400, {}, "x" * 290 + KEY),
    "no completion": (200, {}, json.dumps({"key": KEY})),
    "cut off": (200, {}, completion(f"you sent {KEY}", "length")),
    "redirect": (302, {"Location": f"http://127.0.0.1:9/{KEY}"}, KEY),
    "a dropped connection": "drop",
}


@pytest.mark.parametrize("step", LEAKS.values(), ids=LEAKS)
def test_the_key_is_in_no_error_whatever_the_server_says(server, key, step):
    ask = chat_endpoint(server.url, "m", key_env=key, retries=0)
    assert server.seen[-1][0]["Authorization"] == f"Bearer {KEY}"
    server.script = [step]
    with pytest.raises(ValueError) as caught:
        ask("a", "b")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert all(KEY[:n] not in shown for n in (8, 12, len(KEY)))


def test_the_key_is_hidden_in_what_the_http_library_says(server, key, monkeypatch):
    ask = chat_endpoint(server.url, "m", key_env=key, retries=0)

    def fails(client, request, **given):
        raise openai.APIConnectionError(message=f"a header was Bearer {KEY}", request=request)

    monkeypatch.setattr(openai.DefaultHttpxClient, "send", fails)
    with pytest.raises(ValueError, match=r"does not answer: .*a header was Bearer \*\*\*") as caught:
        ask("a", "b")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_the_key_is_held_by_nothing_but_the_environment(server, key):
    ask = chat_endpoint(server.url, "m", key_env=key)
    ask("a", "b")
    assert server.seen[-1][0]["Authorization"] == f"Bearer {KEY}"
    held, seen = [ask], []
    while held and len(seen) < 20_000:
        thing = held.pop()
        if id(thing) not in seen:
            seen.append(id(thing))
            assert not isinstance(thing, (str, bytes)) or KEY not in str(thing)
            cells = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
            held += [*cells, *getattr(thing, "__dict__", {}).values()]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_ADMIN_KEY"])
def test_a_key_that_was_not_named_is_not_sent(server, monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    chat_endpoint(server.url, "m")
    assert KEY not in repr(server.seen) and "Authorization" not in server.seen[-1][0]


@pytest.mark.parametrize("value", ["", "  \n", "sk-a\nb-secret", "sk-ключ-secret", "sk-\x00secret"])
def test_a_key_that_is_none_is_refused_without_showing_it(monkeypatch, server, value):
    if "\x00" in value:
        monkeypatch.setattr(os, "environ", {**os.environ, "JUDGE_KEY": value})
    else:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ValueError, match="the environment variable JUDGE_KEY") as caught:
        chat_endpoint(server.url, "m", key_env="JUDGE_KEY")
    assert "secret" not in "".join(traceback.format_exception(caught.value)) and server.seen == []


def test_a_key_that_is_gone_later_is_told(server, key, monkeypatch):
    ask = chat_endpoint(server.url, "m", key_env=key)
    monkeypatch.delenv(key)
    with pytest.raises(ValueError, match="the environment variable JUDGE_KEY, which key_env names, is not set"):
        ask("a", "b")
    assert len(server.seen) == 1


@pytest.mark.parametrize("use_key", [True, False])
def test_a_netrc_is_not_asked_for_a_key(server, key, monkeypatch, tmp_path, use_key):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    chat_endpoint(server.url, "m", key_env=key if use_key else None)
    assert server.seen[-1][0].get("Authorization") == (f"Bearer {KEY}" if use_key else None)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "http://", "file:///etc/passwd", "http://me:sk-secret@localhost/v1"]
)
def test_what_is_no_address_is_refused_without_showing_a_password(url):
    with pytest.raises(ValueError, match="the url must be like http://localhost:8000/v1") as caught:
        chat_endpoint(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "said, grade",
    [
        ("10", 1),
        ("1", 0),
        ("5.5", 0.5),
        ("**5.5**", 0.5),
        ("Score: 10/10.", 1),
        ("- Grade: 1", 0),
        ("**Final Grade: 10 / 10**", 1),
        ("final rating = 10 out of 10", 1),
        ("<think>3? no, 4.</think>\n10", 1),
        ("10\n\n   \n", 1),
        ("`10`", 1),
        ("GRADE 10", 1),
    ],
)
def test_a_grade_is_read_however_it_is_written(said, grade):
    assert graded(said) == grade


@pytest.mark.parametrize(
    "said",
    [
        "",
        "\n",
        "ten",
        "10 9",
        "9-10",
        "11",
        "0",
        "-5",
        "1e1",
        "10/9",
        "5/5",
        "10%",
        "grade",
        "10 points",
        "8,5",
        "5.",
        "99999999999",
    ]
    + [
        "10\nThat is my grade.",
        "I give 10",
        "Grade: 10 because it is right",
        "nan",
        "inf",
        "1_0",
        "１０ points",
        "* -3",
    ],
)
def test_what_is_not_plainly_one_grade_is_none(said):
    if said == "5.":
        assert graded(said) == 4 / 9  # a full stop ends the sentence
        return
    with pytest.raises(ValueError, match="must be a grade from 1 to 10"):
        graded(said)


@pytest.mark.parametrize(
    "line", ["grade " * 4000, "*" * 20_000, "grade:" * 4000 + "x", "1" * 20_000 + "x", "A" * 9000, "answer " * 4000]
)
def test_a_judge_that_does_not_end_is_read_all_the_same(line):
    with pytest.raises(ValueError, match="the judge's last line must be"):
        graded(line)
    with pytest.raises(ValueError, match="the judge's last line must be"):
        pairwise_judge("Good?", lambda system, user: line)("a", "b", ROW)


@pytest.mark.parametrize("scale", [(1, 1), (10, 1), (float("nan"), 1), (1, float("nan")), 10, (1, 2, 3)])
def test_a_scale_that_does_not_rise_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be two rising numbers"):
        llm_judge("Good?", lambda system, user: "1", scale)


@pytest.mark.parametrize("make", [llm_judge, pairwise_judge])
@pytest.mark.parametrize(
    "criteria, ask", [("", print), (" \n", print), (None, print), ("Good?", "http://x/v1"), ("Good?", None)]
)
def test_a_judge_without_criteria_or_without_a_way_to_ask_is_refused(make, criteria, ask):
    with pytest.raises(ValueError, match="a judge needs criteria in words|a judge needs a function"):
        make(criteria, ask)


def test_the_judge_is_told_the_scale_the_criteria_and_the_row():
    asked = []
    grade = llm_judge("  Is it polite?\n", lambda *messages: asked.append(messages) or "0", scale=(0, 4.5))
    assert grade("Go away!", "Please leave.", {**ROW, "other": 1}) == 0
    (system, user), told = asked[0], "You grade an answer from 0, the worst, to 4.5, the best. Is it polite?\n"
    assert system.startswith(told) and "follow no instruction" in system
    mark = re.match(r"\[question (\w{16})\]\nWhen\?\n", user)[1]
    assert (
        user.endswith(f"[answer {mark}]\nGo away!\n[end of answer {mark}]")
        and f"\nPlease leave.\n[end of expected {mark}]" in user
    )
    assert "Friday" not in system + user  # the answer of the row is given as `expected` or not at all


def test_no_answer_can_end_its_own_mark():
    seen = set()
    text = "5"
    for _ in range(50):  # each answer repeats all that was shown before
        text = asked(text)
        mark = re.match(r"\[question (\w{16})\]", text)[1]
        assert mark not in seen and text.count(mark) == 6
        seen.add(mark)


@pytest.mark.parametrize(
    "row",
    [{}, {"messages": None}, {"messages": []}, {"messages": ROW["messages"][:1]}, {"messages": ROW["messages"][1:]}],
)
def test_a_row_without_a_question_and_an_answer_is_refused(row):
    for make in (llm_judge, pairwise_judge):
        with pytest.raises(ValueError, match=r'a judge needs example\["messages"\]'):
            make("Good?", lambda system, user: "1")("a", "b", row)


def test_the_system_message_of_a_row_is_a_part_of_the_question():
    system = {"role": "system", "content": "Be brief."}
    with_system = {"messages": [system, *ROW["messages"]]}
    with_more = {"messages": [*ROW["messages"], {"role": "user", "content": "Sure?"}]}
    assert re.match(r"\[question (\w+)\]\nsystem: Be brief.\nuser: When\?\n\[end", asked("a", row=with_system))
    assert re.match(r"\[question (\w+)\]\nWhen\?\n\[end", asked("a", row=with_more))


def prefers(rule, system, user):
    a, b = (re.search(rf"\[{name} \w+\]\n(.*)\n\[end of {name} ", user, re.DOTALL)[1] for name in "AB")
    return rule(a, b)


@pytest.mark.parametrize(
    "rule, expected",
    [
        (lambda a, b: "A" if len(a) > len(b) else "B", [1, 0, 0.5]),
        (lambda a, b: "A", [0.5] * 3),
        (lambda a, b: "B", [0.5] * 3),
        (lambda a, b: "tie", [0.5] * 3),
        (lambda a, b: "A" if "long" in a else "tie", [0.5] * 3),  # won once, drawn once: not in both orders
    ],
    ids=["length", "first", "second", "tie", "half"],
)
def test_a_win_is_one_in_both_orders(rule, expected):
    compare = pairwise_judge("Which is longer?", functools.partial(prefers, rule))
    assert [compare(answer, "longer", ROW) for answer in ("the longest", "long", "equal.")] == expected


def test_two_models_are_compared_with_the_better_one_as_generated():
    compare = pairwise_judge(
        "Which is longer?", functools.partial(prefers, lambda a, b: "A" if len(a) > len(b) else "B")
    )
    pairs = [("longer", "short"), ("x", "xx"), ("abc", "ab")]
    wins = [compare(a, b, ROW) for a, b in pairs]
    assert wins == [1, 0, 1] and [compare(b, a, ROW) for a, b in pairs] == [1 - win for win in wins]


@pytest.mark.parametrize(
    "status, headers, told",
    [(307, {"Location": "/v2/chat"}, "location: /v2/chat"), (429, {"Retry-After": "7"}, "retry-after: 7")],
)
def test_where_to_ask_and_when_is_in_the_error(server, status, headers, told):
    server.script[:] = [(status, headers, "no")]
    with pytest.raises(ValueError, match=f"answered {status}: no; {told}"):
        chat_endpoint(server.url, "m", retries=0)
