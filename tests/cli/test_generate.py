"`ft generate`: our own server's answers as rows to train on; killed, limited, refused."

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
from filelock import FileLock
from small_runs import forked

from ft_notebooks import read_chats, tiny_model, tiny_tokenizer
from ft_notebooks.cli.commands import main
from ft_notebooks.export import write_gguf
from ft_notebooks.inference import serving

pytestmark = pytest.mark.whole

KEY = "sk-0123456789abcdef"


class Handler(BaseHTTPRequestHandler):
    "Answers with the question in capitals; `server.script` may hold a status, a reason to finish, or a text."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        self.server.asked.append((asked, time.monotonic(), self.headers["Authorization"]))
        step = self.server.script.get(asked, "stop")
        if step == "kill":
            os.kill(body["user"], signal.SIGKILL)
        status = step if isinstance(step, int) else 200
        message = {"role": "assistant", "content": "" if step == "silent" else asked.upper()}
        choice = {"message": message, "finish_reason": "length" if step == "length" else "stop"}
        reply = {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        said = json.dumps(reply if status == 200 else {"error": f"no {self.headers['Authorization']}"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.script = [], {}
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    yield found
    found.shutdown()


WORDS = ["apple", "bridge", "candle", "dolphin", "engine", "forest"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("asked.jsonl", [{"prompt": word} for word in WORDS])
    return tmp_path


def write(file, rows):
    Path(file).write_text("\n".join(map(json.dumps, rows)))


def ft(server, *more, data="asked.jsonl"):
    main(["generate", data, "--endpoint", server.url, "--model", "loud", *more])


def refused(capsys, server, *more, **given):
    with pytest.raises(SystemExit) as e:
        ft(server, *more, **given)
    assert e.value.code == 2
    return capsys.readouterr().err


def answered(file="generated.jsonl"):
    return {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in read_chats(file)}


def test_our_own_server_is_asked_as_any_client_asks_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    write_gguf("tiny", "tiny.gguf")
    write("asked.jsonl", [{"prompt": word} for word in WORDS])
    with serving("tiny.gguf") as url:
        with pytest.raises(SystemExit):  # no answer of the tiny model ends within six tokens
            main(["generate", "asked.jsonl", "--endpoint", url, "--model", "tiny", "--field", "max_tokens=6"])
        assert "no answer is left to train on: 6 cut off" in capsys.readouterr().err
        with openai.OpenAI(base_url=url, api_key="none") as client:
            how = {"model": "tiny", "max_tokens": 6, "temperature": 0}
            asked = [client.chat.completions.create(messages=[{"role": "user", "content": w}], **how) for w in WORDS]
    kept = [json.loads(line)["answer"] for line in Path("generated.jsonl.answers.jsonl").read_text().splitlines()[1:]]
    wanted = [(one.choices[0].message.content, "length", one.usage.prompt_tokens, 6) for one in asked]
    assert sorted(tuple(one.values()) for one in kept) == sorted(wanted)


def test_a_run_that_is_killed_asks_only_what_was_on_its_way_again(here, server):
    def killed():
        ft(server, "--parallel", "1", "--field", f"user={os.getpid()}")

    server.script["dolphin"] = "kill"
    assert forked(killed) == -signal.SIGKILL
    begun = Path("generated.jsonl.answers.jsonl").read_bytes()
    assert begun.count(b"\n") == 4 and not Path("generated.jsonl").exists()
    pid = json.loads(begun.split(b"\n")[0])["answers made by"]["fields"]["user"]
    server.script.clear()
    ft(server, "--parallel", "1", "--field", f"user={pid}")
    assert [asked for asked, *_ in server.asked] == [*WORDS[:4], *WORDS[3:]]  # "dolphin" twice
    assert answered() == {word: word.upper() for word in WORDS}
    ft(server, "--field", f"user={pid}")
    assert len(server.asked) == 7


def test_rows_may_be_added_and_only_these_are_asked(here, server):
    ft(server)
    write("asked.jsonl", [{"prompt": "garden"}, *({"prompt": word} for word in WORDS[::-1])])
    ft(server)
    assert [asked for asked, *_ in server.asked].count("garden") == 1 and len(server.asked) == 7
    assert list(answered()) == ["garden", *WORDS[::-1]]


def test_what_is_cut_off_empty_repeated_or_in_the_test_is_no_row(here, server, capsys):
    server.script |= {"apple": "length", "bridge": "silent"}
    write("test.jsonl", [{"prompt": "Candle!", "completion": "wax"}])
    write("asked.jsonl", [{"prompt": word} for word in [*WORDS, "Forest"]])
    ft(server, "--test", "test.jsonl", "--license", "mit")
    said = capsys.readouterr().out
    assert "7 questions; left out: 1 of the test, 1 repeated" in said and "1 cut off, 1 empty" in said
    assert list(answered()) == ["dolphin", "engine", "forest"] and "candle" not in str(server.asked)
    record = json.loads(Path("generated.jsonl.record.json").read_text())
    assert record["licence of the model's answers"] == "mit" and record["dropped"] == {"cut off": 1, "empty": 1}
    assert record["rows"] == 3 and record["used"] == {"question tokens": 25, "answer tokens": 10}


def test_a_scorer_and_a_judge_of_one_s_own_drop_answers(here, server):
    Path("own.py").write_text(
        "def judge(generated, expected, example):\n"
        "    assert example['messages'][-1]['content'] == generated and example['ended']\n"
        "    return 0.7 if 'E' in generated else 0.2\n"
    )
    ft(server, "--score", "own.py:judge", "--at-least", "0.5")
    assert list(answered()) == [word for word in WORDS if "e" in word]
    write("asked.jsonl", [{"prompt": word, "completion": word.upper() if word[0] < "c" else "?"} for word in WORDS])
    ft(server, "--score", "exact_match")
    assert list(answered()) == WORDS[:2] and len(server.asked) == len(WORDS)


def test_the_estimate_sends_nothing_and_a_price_is_said_only_if_given(here, server, capsys):
    ft(server, "--estimate", "--field", "max_tokens=100")
    said = capsys.readouterr().out
    assert "6 requests, about 33 tokens of questions, at most 600 of answers\n" in said and server.asked == []
    ft(server, "--estimate", "--price", "1000,10000", "--requests-per-minute", "3")
    assert "; price: at most about 30.75; 2 minutes or more" in capsys.readouterr().out


def test_the_key_stays_in_the_environment(here, server, monkeypatch, capsys):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.script["engine"] = 401
    said = refused(capsys, server, "--key-env", "TEACHER_KEY")
    assert "answered 401" in said and KEY not in said and "The same command goes on from here" in said
    server.script.clear()
    ft(server, "--key-env", "TEACHER_KEY")
    assert {key for *_, key in server.asked} == {f"Bearer {KEY}"}
    assert all(KEY not in file.read_text() for file in here.glob("generated*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--field", "temperature"], "--field temperature: write it as name=value"),
        (["--field", "max_tokens=none"], "an answer needs a limit"),
        (["--price", "3"], "--price 3: give two numbers"),
        (["--parallel", "0"], "parallel"),
        (["--score", "exact"], "there is no scorer 'exact'"),
        (["--near", "0.2"], "near must be from 0.5 to 1"),
        (["--endpoint", "localhost:8000"], "the url must be like http://localhost:8000/v1"),
        (["--test", "asked.jsonl"], "the test asked.jsonl holds every question"),
        (["--output", "asked.jsonl"], "asked.jsonl exists, and no ft generate has written it"),
        (["--output", "no/rows.jsonl"], "there is no folder no"),
        (["--set", "data.prompt=question"], 'the row has no "question"'),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_request(here, server, capsys, more, said):
    assert said in refused(capsys, server, *more) and server.asked == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Hi"}, "asked.jsonl:2: the row has the keys"),
        ({"prompt": ""}, "asked.jsonl:2"),
        ({"prompt": "Hi", "tools": [{"name": "f"}]}, "the row has tools, or fields beside role and content"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "asked.jsonl:2"),
        ({"prompt": "Hi", "expected": {"a": 1}}, "the answer is"),
    ],
)
def test_a_row_that_is_no_question_is_named_by_its_line(here, server, capsys, row, said):
    write("asked.jsonl", [{"prompt": "Hi"}, row])
    assert said in refused(capsys, server) and server.asked == []


def test_two_commands_for_one_file_do_not_ask_twice(here, server, capsys):
    with FileLock("generated.jsonl.answers.jsonl.lock"):
        assert "another ft generate writes generated.jsonl.answers.jsonl" in refused(capsys, server)
    assert server.asked == []
