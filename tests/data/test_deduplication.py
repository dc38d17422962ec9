"`split` and `overlap`: what counts as the same, groups against all pairs, forms, errors, the same answer anywhere"

import logging
import math
import random
import tracemalloc
import warnings
from collections import Counter, defaultdict
from itertools import chain, combinations, product

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data import deduplication, repetition
from ft_notebooks.data.deduplication import overlap, split

WORDS = [f"word{i}" for i in range(5000)]


def pair(question, answer="ok", system=None):
    turns = [("system", system)] * bool(system) + [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def asking(*questions):
    return Dataset.from_list([pair(question) for question in questions])


def prose(rng, n=40):
    return [rng.choice(WORDS) for _ in range(n)]


def edited(rng, words, n):
    places = set(rng.sample(range(len(words)), n))
    return [rng.choice(WORDS) if i in places else word for i, word in enumerate(words)]


def groups_of(dataset, near):
    "The rows of each group, as a set of tuples."
    groups = defaultdict(list)
    for row, group in enumerate(deduplication._groups(dataset, near)[0].tolist()):
        groups[group].append(row)
    return set(map(tuple, groups.values()))


def together(dataset, near=0.8):
    "The groups of more than one row, as a set of tuples."
    return {group for group in groups_of(dataset, near) if len(group) > 1}


def runs_of(text):
    words = text.split(" ")
    words += [""] * (3 - len(words))
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def pairs_by_hand(texts, near):
    "The definition, with Python's sets and every pair; in thousandths, so that no rounding decides."
    sets = [runs_of(text) for text in texts]
    count = Counter(run for runs in sets for run in runs)
    sets = [{run for run in runs if count[run] <= max(5, math.sqrt(len(texts)))} for runs in sets]
    both = {(i, j): (len(sets[i] & sets[j]), len(sets[i] | sets[j])) for i, j in combinations(range(len(sets)), 2)}
    return {places: a / b for places, (a, b) in both.items() if b and 1000 * a >= round(1000 * near) * b}


# --- what counts as the same


@pytest.mark.parametrize(
    "other",
    ["what is new?", "What  is\n\tnew?", "What is new", "“What is new?”", "Ｗｈａｔ is new?", "WHAT IS (NEW)..."],
)
def test_case_white_space_width_and_the_marks_of_a_sentence_make_no_difference(other):
    assert overlap(asking("What is new?"), asking(other), near=None) == [(0, 0, 1.0)]


@pytest.mark.parametrize(
    "one, other", [("C", "C++"), ("5", "-5"), ("1.5", "15"), ("2+2", "2-2"), ("x<3", "x>3"), ("🙂", "🙃")]
)
def test_signs_that_mean_something_tell_texts_apart(one, other):
    dataset = asking(f"Explain {one}", f"Explain {other}", "Else")
    assert together(dataset) == set()


def test_a_text_of_marks_alone_is_not_empty():
    assert together(asking("?", "!", "...")) == set()
    assert together(asking("?", "!", "?")) == {(0, 2)}


def test_languages_that_write_no_spaces_are_compared_by_character():
    chinese = (
        "请你把下面这一段关于城市历史和文化发展的文章翻译成英文并且保持原来的语气不要添加任何解释或者多余的内容谢谢"
    )
    thai = "กรุณาแปลข้อความต่อไปนี้เป็นภาษาอังกฤษโดยรักษาน้ำเสียงเดิมและอย่าเพิ่มคำอธิบายใดๆ"
    dataset = asking(chinese, chinese.replace("谢", "好", 1), thai, thai[:-1] + "ก", "今天天气很好我们去公园散步吧")
    assert together(dataset) == {(0, 1), (2, 3)}


def test_the_same_prompt_with_another_answer_stays_together_and_another_role_does_not():
    rows = [pair("Name a colour"), pair("name a colour!", "Red."), pair("x", system="a")]
    rows.append({"messages": [{"role": "user", "content": "a"}, *pair("x")["messages"]]})
    assert together(Dataset.from_list(rows)) == {(0, 1)}
    assert together(Dataset.from_list(rows), near=None) == {(0, 1)}


def test_the_prompt_ends_with_the_last_question_so_that_tools_may_answer_otherwise():
    def called(result, question="How warm is it in Oslo?"):
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "city": "Oslo"}]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": f"It is {result}."},
        ]

    rows = [called("4 degrees"), called("minus 9"), called("4 degrees", "How warm is it in Rome?")]
    dataset = Dataset.from_list([{"messages": row} for row in rows])
    assert together(dataset) == {(0, 1)}


def test_without_a_question_all_but_the_last_message_is_the_prompt():
    rows = [[{"role": "system", "content": "Tell a story."}, {"role": "assistant", "content": t}] for t in ("A", "B")]
    assert together(Dataset.from_list([{"messages": row} for row in rows]), near=None) == {(0, 1)}


def test_calls_of_tools_are_part_of_the_text_and_holes_are_not():
    def same(one, other):
        asked = [{"role": "user", "content": "And?"}]
        return overlap(*(Dataset.from_list([{"messages": [m, *asked]}]) for m in (one, other)), near=None) != []

    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather"}], "name": None}
    assert same(call, {**call, "name": ""}) and not same(call, {**call, "tool_calls": [{"name": "find"}]})
    assert not same(call, {**call, "tool_calls": None})
    bare = {"role": "user", "content": "Hi"}
    assert same(bare, {**bare, "tool_calls": None, "name": None}) and not same(bare, {**bare, "name": "Ann"})


def test_conversations_that_only_begin_alike_may_part():
    later = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Nothing."}]
    other = [{"role": "user", "content": "Who says so?"}, {"role": "assistant", "content": "I do."}]
    opening = pair("Hello", "How can I help?")["messages"]
    assert together(Dataset.from_list([{"messages": opening + later}, {"messages": opening + other}])) == set()


def test_one_question_under_several_frequent_system_messages_stays_together():
    systems = ["You answer at length and with care for every detail.", "You answer in one word, or not at all."]
    questions = [" ".join(prose(random.Random(i), 12)) for i in range(50)]
    dataset = Dataset.from_list([pair(question, system=system) for system in systems for question in questions])
    assert together(dataset) == {(i, i + 50) for i in range(50)}


def preference(question, chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    row = {key: [{"role": "assistant", "content": text}] for key, text in sides.items()}
    return {"prompt": [{"role": "user", "content": question}], **row}


def test_preferences_with_one_prompt_stay_together_whatever_the_answers():
    rng = random.Random(0)
    long = prose(rng, 80)
    rows = [preference(f"Question {i}", f"Yes {i}", f"No {i}") for i in range(40)]
    rows += [preference("question 3?", "No 3", "Yes 3"), preference("Else?", " ".join(long), "No")]
    rows += [preference("Other?", " ".join(edited(rng, long, 1)), "No")]
    rows += [
        preference("Say no", "Nay", " ".join(reversed(long))),
        preference("Refuse", "Never", " ".join(reversed(long))),
    ]
    dataset = Dataset.from_list(rows)
    assert together(dataset) == {(3, 40), (41, 42), (43, 44)}
    sides = split(dataset, 0.2)
    assert sides["test"].column_names == ["prompt", "chosen", "rejected"] and len(sides["test"]) == 9
    assert overlap(sides["train"], sides["test"]) == []


# --- groups


@pytest.mark.parametrize("seed, near", list(enumerate([0.5, 0.65, 0.8, 0.95, 1.0])))
def test_no_near_pair_is_missed_and_none_made_up(seed, near):
    rng = random.Random(seed)
    texts = [prose(rng, rng.randint(1, 60)) for _ in range(100)]
    texts += [edited(rng, rng.choice(texts), 1) for _ in range(100)]
    texts = list(dict.fromkeys(" ".join(text) for text in texts))
    found = {(i, j): alike for i, j, alike in deduplication._near_pairs([pa.array(texts)], near)}
    assert found == pairs_by_hand(texts, near)
    assert len(found) > 10 or near >= 0.95


@pytest.mark.whole
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), min_size=1, max_size=14),
    st.sampled_from([0.5, 0.6, 0.8, 1.0]),
)
def test_groups_are_the_chains_of_equal_prompts_and_near_texts(rows, near):
    questions = [" ".join(row) for row in rows]
    dataset = asking(*questions)
    group = list(range(len(rows)))

    def join(i, j):
        old, new = group[j], group[i]
        group[:] = [new if label == old else label for label in group]

    for form in ("user\n {}", "user\n {} assistant\n ok"):
        texts = list(dict.fromkeys(form.format(question) for question in questions))
        places = [texts.index(form.format(question)) for question in questions]
        near_ones = pairs_by_hand(texts, near)
        for i, j in combinations(range(len(rows)), 2):
            if places[i] == places[j] or tuple(sorted((places[i], places[j]))) in near_ones:
                join(i, j)
    expected = {tuple(i for i in range(len(rows)) if group[i] == label) for label in set(group)}
    assert groups_of(dataset, near) == expected


def test_many_pairs_are_all_compared():
    rng = random.Random(8)
    clusters = [[edited(rng, text, 1) for _ in range(15)] for text in (prose(rng, 60) for _ in range(110))]
    texts = [" ".join(text) for cluster in clusters for text in cluster]
    found = list(deduplication._near_pairs([pa.array(texts)], 0.8))  # each copy has at most 2 x 3 of 58 runs for itself
    assert sorted(pair[:2] for pair in found) == [(i, j) for i, j in combinations(range(1650), 2) if i // 15 == j // 15]
    assert len(found) > 10_000  # more than are compared at a time


def test_an_answer_that_was_copied_ties_rows_with_other_prompts():
    rng = random.Random(1)
    answer = " ".join(prose(rng, 80))
    rows = [
        pair("Write on spring", answer),
        pair("An essay, please", answer),
        pair("Write on autumn", " ".join(prose(rng, 80))),
    ]
    assert together(Dataset.from_list(rows)) == {(0, 1)}
    assert together(Dataset.from_list(rows), near=None) == set()


def test_the_order_of_the_rows_does_not_change_the_groups():
    rng = random.Random(2)
    texts = [prose(rng) for _ in range(150)]
    texts += [edited(rng, rng.choice(texts), 1) for _ in range(150)]
    questions = [" ".join(text) for text in texts]
    order = rng.sample(range(300), 300)
    one, other = together(asking(*questions)), together(asking(*[questions[i] for i in order]))
    assert {tuple(sorted(order[i] for i in group)) for group in other} == one and len(one) > 50


# --- forms


FORM = (
    "You are a careful annotator. " + " ".join(f"Rule {i}: label {i} is for case {i}." for i in range(30)) + " Text: "
)


@pytest.mark.parametrize("n", [6, 300])
def test_one_long_instruction_does_not_tie_its_rows(n):
    rng = random.Random(n)
    dataset = Dataset.from_list(
        [pair(FORM + " ".join(prose(rng, 6)), rng.choice(["positive", "negative"])) for _ in range(n)]
    )
    assert together(dataset) == set()
    assert len(split(dataset, 0.2)["test"]) == round(0.2 * n)


def test_in_a_large_file_a_part_of_the_texts_shows_the_forms(monkeypatch):
    "Each sixth of 300 texts is looked at: 15 of them have the form, so 90 of all, more than the root of 300."
    monkeypatch.setattr(deduplication, "_SAMPLE", 50)
    monkeypatch.setattr(deduplication, "_MARKED", 1000)
    rng = random.Random(9)
    texts = [FORM + " ".join(prose(rng, 6)) for _ in range(90)] + [" ".join(prose(rng)) for _ in range(210)]
    copied = texts[150].replace(" ", " so ", 1)
    assert together(asking(*texts, copied)) == {(150, 300)}


def test_copies_under_a_long_instruction_are_found():
    rng = random.Random(4)
    texts = [prose(rng) for _ in range(100)]
    texts += [edited(rng, text, 1) for text in texts[:10]]
    dataset = Dataset.from_list([pair(FORM + " ".join(text)) for text in texts])
    assert together(dataset) == {(i, i + 100) for i in range(10)}


def test_a_constant_system_message_ties_nothing():
    rng = random.Random(5)
    dataset = Dataset.from_list([pair(" ".join(prose(rng, 5)), system=FORM) for _ in range(200)])
    assert together(dataset) == set()


@pytest.mark.parametrize(
    "part, new, n",
    [("train", False, 1000), ("validation", False, 20), ("test", True, 200)],
)
def test_the_built_in_notes_split_row_by_row(part, new, n):
    sides = split(appointments(n, part=part, new_phrases=new), 0.1)
    found = sides["test"].info.description
    assert len(sides["test"]) == n // 10
    assert "0 are near-duplicates" in found or "the largest of 2 rows" in found  # two that differ in the hour alone


def test_clusters_of_near_duplicates_are_compared_block_by_block():
    texts = [" ".join([*map(str, range(c * 50, c * 50 + 40)), f"n{k}"]) for k in range(20) for c in range(25)]
    runs = deduplication._shingles([pa.array(texts)])
    blocks = list(deduplication._candidate_pairs(runs, 0.8))
    assert max(map(len, blocks)) <= 1000
    pairs = set(chain.from_iterable(blocks))
    assert len(pairs) == 25 * 20 * 19 // 2
    groups = deduplication._groups(asking(*texts), 0.8)[0]
    assert groups.tolist() == [*range(25)] * 20


def test_a_text_needs_its_shingles_and_little_else():
    def peak(n):
        rng = random.Random(n)
        parts = [pa.array([" ".join(prose(rng, 22)) for _ in range(5000)]) for _ in range(n // 5000)]
        tracemalloc.start()
        deduplication._near_pairs(parts, 0.8)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    a_text = (peak(20_000) - peak(10_000)) / 10_000
    shingles = 20 * (4 + 1)  # each a number of four bytes and a mark of one
    assert a_text < 2 * shingles + 20 * 8  # an array that grows is at times too large; the rest are numbers of a band


def test_a_beginning_may_stand_behind_the_row_that_it_begins():
    chats = [[f"question {n}", f"answer {n}", "and then?", "no more"] for n in range(5)]
    shorter = [chat[:2] for chat in chats]
    assert repetition.beginnings(chats + shorter) == [(n + 5, n) for n in range(5)]


def test_texts_of_nothing_but_forms_are_near_no_other():
    texts = [
        " ".join(letters) for letters in product("ab", repeat=8)
    ]  # every run of three is in more than 16 of the 256
    with warnings.catch_warnings(action="error"):
        assert list(deduplication._near_pairs([pa.array(texts)], 0.5)) == []


# --- split


@pytest.mark.parametrize("seed, share", list(enumerate([0.1, 0.9])))
def test_no_side_sees_the_other_and_no_row_is_lost(share, seed):
    rng = random.Random(seed)
    texts = [prose(rng) for _ in range(80)]
    texts += [edited(rng, rng.choice(texts), rng.randint(0, 3)) for _ in range(120)]
    dataset = Dataset.from_list([pair(" ".join(text), f"Answer {i}") for i, text in enumerate(texts)])
    sides = split(dataset, share, seed)
    assert isinstance(sides, DatasetDict) and list(sides) == ["train", "test"]
    assert share * 200 / 2 <= len(sides["test"]) <= share * 200
    numbers = {name: [int(row[1]["content"].split()[1]) for row in side["messages"]] for name, side in sides.items()}
    assert all(found == sorted(found) for found in numbers.values())
    assert sorted(numbers["train"] + numbers["test"]) == list(range(200))
    near_ones = pairs_by_hand([f"user\n {' '.join(text)}" for text in texts], 0.8)
    assert len(near_ones) > 50
    assert not [places for places in near_ones if len(set(places) & set(numbers["test"])) == 1]
    assert overlap(sides["train"], sides["test"]) == overlap(sides["test"], sides["train"]) == []


def test_rows_that_are_all_different_are_drawn_as_before_near_duplicates_were_looked_for():
    dataset = appointments(50)
    for seed in range(3):
        order = list(range(50))
        random.Random(seed).shuffle(order)
        expected = dataset.select(sorted(order[:10]))
        assert split(dataset, 0.2, seed)["test"][:] == split(dataset, 0.2, seed, near=None)["test"][:] == expected[:]


def test_the_description_counts_and_is_added_to_what_stood_there():
    rng = random.Random(6)
    long = prose(rng)
    questions = [" ".join(text) for text in (long, edited(rng, long, 1))] + [f"Question {i}?" for i in range(20)]
    rows = [pair(question) for question in questions]
    rows += [pair("question 3"), pair("Question 3", "Other"), pair("QUESTION 4?")]
    dataset = Dataset.from_list(rows)
    dataset.info.description = "Questions of all kinds."
    said = {side.info.description for side in split(dataset, 0.3).values()}
    assert said == {
        "Questions of all kinds.\nOf 25 rows, 2 are duplicates and 1 repeat a prompt with another answer; "
        "1 are near-duplicates (similarity 0.8 or more). 3 groups are kept on one side each, the largest of 3 rows."
    }
    assert dataset.info.description == "Questions of all kinds."
    plain = split(dataset, 0.3, near=None)["train"].info.description
    assert plain.endswith("with another answer. 2 groups are kept on one side each, the largest of 3 rows.")


def test_nothing_is_printed_and_nothing_is_logged(capfd, caplog):
    with caplog.at_level(logging.DEBUG, "ft_notebooks"):
        overlap(*split(appointments(30), 0.2).values())
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.name.startswith("ft_notebooks")]


@pytest.mark.parametrize("near", [0, 0.49, -1, 1.01, 80, float("nan")])
def test_a_similarity_that_is_none_is_refused_by_both(near):
    for call in (
        lambda: split(appointments(20), 0.2, near=near),
        lambda: overlap(appointments(2), appointments(2), near),
    ):
        with pytest.raises(
            ValueError, match=r"near must be from 0.5 to 1, or None for equal texts only, got .*; 0.8 is usual"
        ):
            call()


def test_another_table_is_refused_by_its_columns():
    with pytest.raises(
        ValueError, match=r"the columns are \['story'\]; pass what read_chats or read_preferences returned"
    ):
        split(Dataset.from_dict({"story": ["a", "b"]}), 0.5)
    with pytest.raises(ValueError, match="pass what read_chats"):
        overlap(appointments(3), DatasetDict(train=appointments(3)))


def test_no_rows_and_one_row_cannot_be_split_and_overlap_with_nothing():
    none, one = appointments(3).select([]), appointments(1)
    for dataset in (none, one):
        with pytest.raises(
            ValueError,
            match=f"{len(dataset)} rows, whose prompts form {len(dataset)} groups? of .*, the test set would get 0",
        ):
            split(dataset, 0.5)
    assert overlap(none, one) == overlap(one, none) == overlap(none, none) == []
    assert overlap(one, one) == [(0, 0, 1.0)]


def test_a_group_too_large_for_the_share_is_named_with_its_cure():
    dataset = concatenate_datasets(
        [appointments(3), Dataset.from_list([pair("Write a poem.", f"Poem {i}") for i in range(20)])]
    )
    with pytest.raises(ValueError) as failure:
        split(dataset, 0.5)
    said = str(failure.value)
    assert (
        "share=0.5 asks for 12 test rows; with 23 rows, whose prompts form 4 groups of equal or similar ones, the test"
        in said
    )
    assert "20 rows belong together, such as the rows 3 and 4 (counted from 0)" in said
    assert "near=None" in said and "dataset.train_test_split(share)" in said
    with pytest.raises(ValueError) as failure:
        split(appointments(3), 0.1)
    assert "belong together" not in str(failure.value)  # the group is not what is in the way


def test_a_test_that_takes_all_rows_is_refused():
    with pytest.raises(ValueError, match="would get 2 and the training set 0; share=0.74 works"):
        split(appointments(2), 0.9)


def test_groups_of_any_size_are_drawn_alike():
    dataset = concatenate_datasets([appointments(60), appointments(20)])  # the first 20 come twice
    assert dataset[0] == dataset[60]
    doubles = []
    for seed in range(10):
        test = [str(row) for row in split(dataset, 0.2, seed)["test"]["messages"]]
        doubles.append(len(test) - len(set(test)))
    assert 2.5 < sum(doubles) / 10 < 5.5  # 4 of the 20 by chance


def test_a_group_larger_than_the_test_is_trained_on_where_the_others_suffice():
    dataset = concatenate_datasets(
        [appointments(80), Dataset.from_list([pair("Write a poem.", f"Poem {i}") for i in range(20)])]
    )
    for seed in range(5):
        sides = split(dataset, 0.1, seed)
        assert len(sides["test"]) == 10 and not [
            row for row in sides["test"]["messages"] if "poem" in row[0]["content"]
        ]


def test_a_dataset_in_another_format_is_split_and_keeps_its_format():
    dataset = appointments(20)
    assert split(dataset.with_format("numpy"), 0.2)["test"].format["type"] == "numpy"
    found = split(dataset.with_format("numpy"), 0.2)["test"].with_format(None)
    assert found[:] == split(dataset, 0.2)["test"][:]


# --- overlap


@pytest.mark.parametrize("seed, near", list(enumerate([None, 0.6, 0.8])))
def test_overlap_is_the_best_pair_of_each_row_of_the_test(seed, near):
    rng = random.Random(seed)
    texts = [prose(rng, rng.randint(3, 40)) for _ in range(120)]
    texts += [edited(rng, rng.choice(texts), rng.randint(0, 2)) for _ in range(120)]
    rng.shuffle(texts)
    answers = [rng.choice(["yes", "no", "who knows"]) for _ in texts]
    rows = [pair(" ".join(text), answer) for text, answer in zip(texts, answers)]
    dataset = Dataset.from_list(rows)
    train, test = dataset.select(range(150)), dataset.select(range(150, 240))
    best = {}
    prompts = [f"user\n {' '.join(text)}" for text in texts]
    wholes = [f"{prompt} assistant\n {answer}" for prompt, answer in zip(prompts, answers)]
    for texts in (wholes, prompts):
        different = list(dict.fromkeys(texts))
        alike = pairs_by_hand(different, near) if near else {}
        for row in range(90):
            j = different.index(texts[150 + row])
            for i in range(150):
                k = different.index(texts[i])
                similarity = 1.0 if k == j else alike.get((min(k, j), max(k, j)), 0)
                if similarity > best.get(row, (0, 0))[1]:
                    best[row] = i, similarity
    assert overlap(train, test, near) == [(i, row, similarity) for row, (i, similarity) in sorted(best.items())]
    assert len(best) > 10


def test_the_rows_to_take_out_of_training_are_found_by_turning_the_two_around():
    rng = random.Random(7)
    texts = [prose(rng) for _ in range(60)]
    train = asking(*[" ".join(text) for text in texts], *[" ".join(edited(rng, text, 1)) for text in texts[:20]])
    test = asking(*[" ".join(text) for text in texts[10:30]])
    seen = {row for _, row, _ in overlap(test, train)}
    assert seen == {*range(10, 30), *range(70, 80)}
    clean = train.select([i for i in range(len(train)) if i not in seen])
    assert overlap(clean, test) == []


def test_a_row_that_is_equal_is_named_before_one_with_the_same_prompt():
    train = Dataset.from_list([pair("Name a colour", "Blue"), pair("Name a colour", "Red")])
    assert overlap(train, Dataset.from_list([pair("name a colour", "red")])) == [(1, 0, 1.0)]
    assert overlap(train, Dataset.from_list([pair("name a colour", "green")]), near=None) == [(0, 0, 1.0)]


def test_a_prompt_that_all_rows_share_gives_one_pair_a_row_and_not_all_of_them():
    train, test = (
        Dataset.from_list([pair("Write a poem.", f"{name} {i}") for i in range(300)]) for name in ("Ode", "Elegy")
    )
    assert overlap(train, test) == [(0, row, 1.0) for row in range(300)]


def test_chats_and_preferences_overlap_by_their_prompts():
    chats = asking("Which is larger, 2 or 3?", "Why?")
    preferences = Dataset.from_list([preference("which is larger: 2 or 3", "Three.", "Two.")])
    assert overlap(chats, preferences) == [(0, 0, 1.0)]
