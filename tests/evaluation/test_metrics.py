"""Edges of the scorers: any text gives a finite number; slow specifications, the libraries and hand tables are the
oracles."""

import ast
import math
import re
import string
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ft_notebooks.evaluation import metrics
from ft_notebooks.evaluation.answer_format import (
    json_schema,
    key_order,
    last_number,
    matches,
    number_match,
    valid_json,
)
from ft_notebooks.evaluation.metrics import (
    chrf,
    exact_match,
    find_scorers,
    length,
    normalised_match,
    repetition,
    rouge_l,
    stop_rate,
    token_f1,
)

quick = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
PIECES = [*string.printable, " ", " ", " the ", " a ", " an ", "Berlin", "12"]
ASCII = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
WORDS = st.lists(st.sampled_from("it the a Berlin day 3 3.5 -3 ... 東京 мир".split()), max_size=12).map(" ".join)
ANY = st.one_of(st.text(max_size=30), WORDS)


def score(scorer, generated, expected="", **example):
    return scorer(generated, expected, example)


@pytest.mark.whole
@quick
@given(ANY, ANY)
def test_any_two_texts_have_finite_scores_and_equal_ones_the_best(a, b):
    for scorer in (normalised_match, token_f1, rouge_l, chrf):
        value = score(scorer, a, b)
        assert type(value) is float and 0 <= value <= 1 + 1e-9, (scorer, value)
        assert score(scorer, a, a) == pytest.approx(1), scorer
    for scorer in (valid_json, length, repetition):
        assert type(score(scorer, a)) is float and math.isfinite(score(scorer, a)), scorer
    assert 0 <= score(repetition, a) < 1
    if last_number(b) is not None:
        assert score(number_match, a, b) == float(last_number(a) == last_number(b)) and score(number_match, b, b) == 1


def squad(text):
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


@quick
@given(ASCII, ASCII)
def test_on_ascii_the_words_are_those_of_squad(a, b):
    found, wanted = squad(a), squad(b)
    assert (metrics._words_of(a), metrics._words_of(b)) == (found, wanted)
    if wanted:
        assert score(normalised_match, a, b) == (found == wanted)
        same = sum((Counter(found) & Counter(wanted)).values())
        precision, recall = same / max(1, len(found)), same / len(wanted)
        f1 = 2 * precision * recall / (precision + recall) if same else 0
        assert score(token_f1, a, b) == pytest.approx(f1)


@quick
@given(ASCII, ASCII)
def test_on_ascii_rouge_l_is_the_librarys(a, b):
    if re.search("[a-zA-Z0-9]", b):
        assert score(rouge_l, a, b) == RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure


@quick
@given(ANY, ANY)
def test_chrf_is_the_librarys_divided_by_a_hundred(a, b):
    if b.strip():
        assert score(chrf, a, b) == sacrebleu.CHRF().sentence_score(a, [b]).score / 100


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("Größe 5€", ["größe", "5"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),  # a word of Hindi keeps its vowel signs
        ("한국어 abc中", ["한국어", "abc", "中"]),
        ("cafe\u0301", ["cafe\u0301"]),
        ("🙂 _", []),
    ],
)
def test_rouge_l_reads_the_words_of_any_script(text, tokens):
    assert metrics.words_in(text) in (tokens, [t for t in tokens if t != "ー"])


@pytest.mark.parametrize("scorer", [normalised_match, token_f1, rouge_l, chrf, exact_match])
def test_an_empty_answer_is_right_where_nothing_was_expected_and_wrong_elsewhere(scorer):
    assert score(scorer, "", "") == score(scorer, " \n", "") == 1
    assert score(scorer, "", "word") == score(scorer, "word", "") == 0


@pytest.mark.parametrize("scorer", [normalised_match, token_f1, rouge_l])
@pytest.mark.parametrize("expected, other", [("+", "-"), ("?", "!"), ("👍", "👎"), ("<", ">")])
def test_marks_alone_are_compared_as_text(scorer, expected, other):
    assert score(scorer, expected, expected) == 1 and score(scorer, other, expected) == 0


@quick
@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["so {}", "{}.", "({})", "**{}**", "x = {}\n", "#### {}", "${}", "{} %"]),
)
def test_a_number_is_read_whatever_stands_around_it(n, around):
    assert last_number(around.format(n)) == n
    assert last_number(around.format(f"{n:,}")) == n


@quick
@given(st.decimals(-(10**6), 10**6, places=3, allow_nan=False))
def test_a_decimal_is_read_exactly(value):
    assert last_number(f"about {value}") == Fraction(value) == last_number(f"about {value:,}.")
    assert score(number_match, f"{value}000", f"{value}") == 1


@pytest.mark.parametrize(
    "text, value",
    [
        ("1/0", 0),  # no fraction: the last of two numbers
        ("3/4/5", 5),
        ("1,234/2", 617),
        ("1,00,000", 100_000),  # as written in India
        ("1,2,3", 3),
        ("2000,500", 500),
        ("1.2.3", 3),
        ("5..", 5),
        ("1e2", 100),
        ("1e9999", 9999),
        ("gpt-4", 4),
        ("f(2)-3", 3),
        ("-€5", -5),
        ("€-5", -5),
        ("10²", 10),
        ("٣", 3),  # Arabic digits
        ("#### 5 apples and 3", 3),
        ("#### 5\n#### 6", 5),
        ("####-5", -5),
        ("text\n  #### -$1,000.\nmore 3", -1000),
        ("#### none", None),
        ("1" * 101, None),
        ("1" * 100, int("1" * 100)),
    ],
)
def test_the_last_number_is(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    "text", ["1" * 50_000, ",12" * 3000, "\n" * 20_000 + "####", "1/" * 9000, "-" * 20_000, "1e" * 9000]
)
def test_a_text_that_does_not_end_is_read_all_the_same(text):
    last_number(text)
    assert score(number_match, text, "#### 7") == 0
    assert 0 <= score(repetition, text) < 1


@pytest.mark.parametrize("n, expected", [(0, 0), (3, 0), (4, 0), (5, 1 / 2), (103, 0.99)])
def test_the_repetition_of_one_word_said_n_times_is(n, expected):
    assert score(repetition, "it " * n) == score(repetition, "!" * n) == pytest.approx(expected)


@quick
@given(WORDS)
def test_repetition_is_the_share_of_runs_said_before(text):
    words = metrics._WORD_OR_MARK.findall(text.lower())
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    before = sum(run in runs[:i] for i, run in enumerate(runs))
    assert score(repetition, text) == pytest.approx(before / len(runs) if runs else 0)


@pytest.mark.parametrize("ended, expected", [(True, 1), (False, 0), (1, 1)])
def test_the_stop_rate_of_a_row_says_whether_it_ended(ended, expected):
    assert score(stop_rate, "text", ended=ended) == expected


@pytest.mark.parametrize("example", [{}, {"ended": None}, {"ended": "yes"}, {"ended": 2}, {"ended": []}])
def test_the_stop_rate_of_a_row_that_does_not_say_so_is_an_error(example):
    with pytest.raises(ValueError, match=r'stop_rate needs example\["ended"\]'):
        stop_rate("", "", example)


@pytest.mark.parametrize(
    "text", ["1e999", '{"a": ' * 2000, "-Infinity", "[1,]", "1" * 5000, '{"a": 1} // x', "\ufeff{}", "nul"]
)
def test_json_that_no_reader_takes_gives_zero_and_no_error(text):
    schema = json_schema({"multipleOf": 0.1, "items": {"$ref": "#"}})
    assert score(schema, text) in (0, 1) if text == "1e999" else score(schema, text) == score(valid_json, text) == 0


@pytest.mark.parametrize("depth", [100, 900])
def test_an_answer_nested_deeper_than_a_recursive_schema_can_follow_is_no_error(depth):
    nested = json_schema({"$ref": "#/$defs/tree", "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}})
    assert score(nested, "[" * depth + "]" * depth) in (0, 1)


@pytest.mark.parametrize(
    "schema, error",
    [
        ({"type": "strin"}, "#.type of the schema: 'strin'"),
        ({"required": "day"}, "#.required of the schema: 'day' is not of type 'array'"),
        ({"pattern": "("}, "#.pattern of the schema"),
        ({"$ref": "#/$defs/x"}, r"\$ref '#/\$defs/x' does not resolve inside the schema"),
        (
            {"allOf": [{"items": {"$ref": "http://127.0.0.1:9/x.json"}}]},
            "does not resolve inside the schema; no external schema is loaded",
        ),
        ({"properties": {"default": {"$ref": "#/no"}}}, "'#/no' does not resolve"),
        (
            {"items": {"$dynamicRef": "http://127.0.0.1:9/x.json"}},
            r"\$dynamicRef 'http://127.0.0.1:9/x.json' does not resolve",
        ),
        ({"anyOf": [{"format": "colour"}]}, "no installed library checks the format 'colour'"),
        ({"$schema": "http://example.org/mine"}, "'http://example.org/mine', a draft that jsonschema does not know"),
        ("{}", "a JSON Schema must be a dict, got '{}'"),
        (None, "a JSON Schema must be a dict, got None"),
    ],
)
def test_a_schema_with_a_mistake_is_refused_before_the_first_row(schema, error):
    with pytest.raises(ValueError, match=error):
        json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"x": {"type": "null"}},
            "$ref": "#/definitions/x",
        },
        {"$defs": {"x": {"$anchor": "here", "type": "null"}}, "$ref": "#here"},
        {"$id": "http://example.org/a", "$defs": {"x": {"$id": "b", "type": "null"}}, "$ref": "b"},
        {
            "$id": "http://example.org/a",
            "$defs": {"x": {"$id": "b", "$ref": "#/$defs/y", "$defs": {"y": {"type": "null"}}}},
            "$ref": "b",
        },
        {"$defs": {"x": {"$dynamicAnchor": "here", "type": "null"}}, "$dynamicRef": "#here"},
        {"enum": [{"$ref": "#/no"}, {"format": "colour"}, None]},
    ],
    ids=["draft 7", "anchor", "id", "id within id", "dynamic anchor", "data that looks like a schema"],
)
def test_a_schema_that_leads_to_itself_in_any_way_is_followed(schema):
    assert score(json_schema(schema), "null") == 1 and score(json_schema(schema), "5") == 0


def test_a_format_whose_library_is_missing_is_refused_and_not_passed(monkeypatch):
    from jsonschema import Draft202012Validator

    assert score(json_schema({"format": "date-time"}), '"yesterday"') == 0
    checkers = {k: v for k, v in Draft202012Validator.FORMAT_CHECKER.checkers.items() if k != "date-time"}
    monkeypatch.setattr(Draft202012Validator.FORMAT_CHECKER, "checkers", checkers)
    with pytest.raises(ValueError, match=r"'date-time'.*pip install 'jsonschema\[format-nongpl\]'"):
        json_schema({"format": "date-time"})


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<n>a)(?P<n", r"\p{Nonsense}"])
def test_a_pattern_with_a_mistake_is_refused_before_the_first_row(pattern):
    with pytest.raises(ValueError, match="is not a valid regular expression"):
        matches(pattern)


@pytest.mark.parametrize("pattern", [r"\d{4}-\d{2}", r"(yes|no)\.?", r"(?i)[a-f]+", r"(?s)a.b", r"\w+\s\w+", ""])
@pytest.mark.parametrize("text", ["2026-11", "yes.", "No", "FACE", "a\nb", "a b", "x", ""])
def test_a_pattern_matches_what_it_matches_in_python(pattern, text):
    assert score(matches(pattern), text) == bool(re.fullmatch(pattern, text))


def test_a_slow_pattern_is_an_error_of_its_row_alone():
    slow = matches("(a|aa)+", timeout=0.05)
    with pytest.raises(ValueError, match="took more than 0.05 s on 81 characters"):
        score(slow, "a" * 80 + "b")
    assert score(slow, "a" * 80) == 1


@pytest.mark.parametrize(
    "schema, answer",
    [
        ({"pattern": "^(a+)+$"}, '"{}"'),
        ({"patternProperties": {"^(a+)+$": {}}}, '{{"{}": 1}}'),
        ({"items": {"allOf": [{"pattern": "^(a|aa)+$"}]}}, '["{}"]'),
    ],
)
def test_a_slow_pattern_in_a_schema_is_an_error_of_its_row_alone(schema, answer):
    slow = json_schema(schema, timeout=0.05)
    with pytest.raises(ValueError, match="checking the answer takes more than 0.05 seconds"):
        score(slow, answer.format("a" * 80 + "b"))
    assert score(slow, answer.format("a" * 20)) == 1


def test_all_plain_scorers_are_found_by_name_and_take_three_arguments():
    found = find_scorers(list(metrics._PLAIN))
    assert {"exact_match", "rouge_l", "chrf", "valid_json", "stop_rate"} < found.keys() and len(found) == 11
    for name, scorer in found.items():
        assert scorer.__name__ == name and math.isfinite(scorer("1", "1", {"ended": True}))
    assert find_scorers([]) == {} and list(find_scorers([" rouge_l ", "chrf"])) == ["rouge_l", "chrf"]


def test_no_name_that_takes_arguments_is_missing_from_the_hint():
    from ft_notebooks.course import judge

    for made in (json_schema, matches, key_order, judge.llm_judge, judge.pairwise_judge):
        with pytest.raises(ValueError, match=rf"no scorer '{made.__name__}'; .* made by a call .* as file.py:name"):
            find_scorers([made.__name__])


@pytest.mark.parametrize(
    "name, error",
    [
        ("exact", "no scorer 'exact'; did you mean 'exact_match'"),
        ("Rouge_L", "did you mean 'rouge_l'"),
        ("", "there is no scorer ''; there are chrf"),
        ("nowhere.py:polite", "nowhere.py:polite: there is no file 'nowhere.py'"),
        ("{}:tone", "no function or class 'tone' in .*; did you mean 'tones'"),
        ("{}:LIMIT", "no function or class 'LIMIT' in"),
        ("{}:two", r"two must take \(generated, expected, example\): too many positional arguments"),
        ("{}:keywords", r"keywords must take \(generated, expected, example\): too many"),
    ],
)
def test_a_name_that_is_no_scorer_is_told_at_once(tmp_path, name, error):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "LIMIT = 3\ndef tones(g, e, x): return 1\ndef two(generated, expected): return 1\n"
        "def keywords(*, generated, expected, example): return 1\n"
    )
    with pytest.raises(ValueError, match=error):
        find_scorers([name.format(mine)])


@pytest.mark.parametrize(
    "text, error",
    [
        ("def f(:", "raised SyntaxError"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
        ("import nowhere_at_all", "raised ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_its_error(tmp_path, text, error):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"mine.py:f: running .*mine.py {error}"):
        find_scorers([f"{tmp_path}/mine.py:f"])


def test_a_file_may_hold_dataclasses_lambdas_and_any_name(tmp_path):
    (tmp_path / "my scorers.txt").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Says:\n    word: "
        "str\n"
        "    def __call__(self, generated, expected, example):\n        return self.word in generated\n\n"
        "please = Says('please')\nshort = lambda *args: len(args[0]) < 9\n"
    )
    found = find_scorers([f"{tmp_path}/my scorers.txt:{name}" for name in ("please", "short")])
    assert [scorer("please", "", {}) for scorer in found.values()] == [True, True]
    assert [scorer("give me all of it", "", {}) for scorer in found.values()] == [False, False]


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    mine = tmp_path / "mine.py"
    for value in (1, 2):
        mine.write_text(f"def f(generated, expected, example): return {value}\n")
        assert score(find_scorers([f"{mine}:f"])["f"], "") == value


@pytest.mark.parametrize("name, module", [("rouge_l", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu")])
def test_a_missing_library_is_told_with_its_cure_before_the_first_row(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # import then fails
    with pytest.raises(
        ValueError, match=rf"{module.split('.')[0]} is not installed; pip install 'ft-notebooks\[eval\]'"
    ):
        find_scorers([name])
    assert find_scorers(["token_f1"])


def test_the_libraries_of_the_extra_are_not_imported_with_the_module():
    top = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8")).body
    named = {a.name for n in top if isinstance(n, ast.Import) for a in n.names} | {
        n.module for n in top if isinstance(n, ast.ImportFrom)
    }
    assert not {name for name in named if name and name.split(".")[0] in ("rouge_score", "sacrebleu", "nltk")}


def test_the_two_readers_of_json_agree_on_objects():
    for text in ('{"a": 1}', '{"a": 1, "a": 2}', "{}", "", "{", '{"a": {"b": [1, 2]}}', "[" * 5000):
        strict = any(key_order(*keys)(text, "", {}) for keys in ([], ["a"]))
        assert strict == bool(score(valid_json, text)), text
    assert score(valid_json, ' {"a": [1]} ') == 1
