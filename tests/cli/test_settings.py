"Edges of `ft_notebooks.cli.settings`: every field that a library has, and every slip of the pen."

import dataclasses
import enum

import pytest

from ft_notebooks.cli.setting_values import convert
from ft_notebooks.cli.settings import Section, read_settings, sections, setting_types

SECTIONS = sections()


def plain_defaults():
    for section, (cls, table) in SECTIONS.items():
        known = setting_types(section)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)} if cls else {}
        defaults |= {name: row.default for name, row in table.items() if row.default is not ...}
        for name, default in defaults.items():
            if name in known and isinstance(default, (bool, int, float, str, type(None))):
                yield f"{section}.{name}", known[name], default


def test_every_default_of_every_field_survives_being_written_down():
    changed = {}
    for key, kind, default in plain_defaults():
        text = default.value if isinstance(default, enum.Enum) else str(default)
        if (found := convert(text, kind)) != default:
            changed[key] = (found, default)
    assert not changed


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_known_by_its_own_name_and_refused_with_one_letter_more(section):
    for key in setting_types(section):
        with pytest.raises(ValueError, match=f"has no key '{key}x'"):
            read_settings(overrides=[f"{section}.{key}x=1"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[sft]\nlearning_rate = 2e-4 # inline\n", 2e-4),
        ("[sft]\r\nlearning_rate = 2e-4\r\n", 2e-4),
        ("\ufeff[sft]\nlearning_rate=2e-4", 2e-4),
        ("[sft]\n# learning_rate = 1\nlearning_rate = 2e-4", 2e-4),
    ],
)
def test_files_as_people_write_them(tmp_path, text, expected):
    file = tmp_path / "settings.ini"
    file.write_bytes(text.encode())
    assert read_settings(file)["sft"] == {"learning_rate": expected}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[sft]\nmax_steps = 1\nmax_steps = 2", "is there twice"),
        ("[sft]\nmax_steps 2", "is neither a .section. nor key = value"),
        ("[lora]\nr = eight", "settings.ini:2: r must be a whole number, got 'eight'"),
        ("[model]\nmethod = qlora", "settings.ini:2: method"),
        ("[model]\nbits = 16.5", "settings.ini:2: bits"),
        ("[sft]\nlearning_rate = inf", "learning_rate must be a finite number, got 'inf'"),
        ("[sft]\nlearning_rate =", "settings.ini:2: sft.learning_rate is empty"),
        ("[DEFAULT]\nr = 8", r"no section \[DEFAULT\]"),
        ("[rloo]\nbeta = 0.1", r"no section \[rloo\]"),
        (
            "[sft]\nLearning_Rate = 1",
            "no key 'Learning_Rate' in trl [\\d.]+ and transformers [\\d.]+; did you mean 'learning_rate'",
        ),
        ("[lora]\nrank = 8", "no key 'rank' in peft [\\d.]+; did you mean 'r'\\?"),
        ("[data]\nevaluation = 0.1", r"\[data\] has no key 'evaluation' in ft_notebooks"),
        ("[model]\nname = %s\nbits = x", "settings.ini:3: bits"),
        ("[sft]\nmax_steps: 3", "is neither a .section. nor key = value"),
        ("[model]\nbits = 8\n[sft] learning_rate = 3e-4", r"ini:3: \[sft\] must stand alone on its line; write 'learn"),
        (
            "  [sft]max_steps = [3]",
            r"ini:1: \[sft\] must stand alone on its line; write 'max_steps = \[3\]' on the next",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, message):
    file = tmp_path / "settings.ini"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(file)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "settings.ini"
    file.write_bytes(b"[sft]\n\xff\xfe")
    with pytest.raises(ValueError, match="settings.ini"):
        read_settings(file)


def test_the_command_line_is_stronger_than_the_file_and_the_last_word_counts(tmp_path):
    file = tmp_path / "settings.ini"
    file.write_text("[sft]\nmax_steps = 1\n")
    assert read_settings(file, ["sft.max_steps=2", "sft.max_steps=3"])["sft"] == {"max_steps": 3}


FIXED = {f"{name}.{key}": row.ft for name, one in SECTIONS.items() for key, row in one.table.items() if row.ft}


@pytest.mark.parametrize("key", FIXED)
def test_what_ft_sets_itself_is_refused_with_what_to_do_instead(key):
    section, name = key.split(".")
    with pytest.raises(ValueError) as e:
        read_settings(overrides=[f"{key}=true"])
    assert str(e.value) == f"--set {key}=true: ft sets {name} itself; {FIXED[key]}"
    assert name not in setting_types(section) and name in {f.name for f in dataclasses.fields(SECTIONS[section].config)}


def test_the_keys_are_the_fields_of_the_library_and_ours():
    for section, (cls, table) in SECTIONS.items():
        fields = {f.name for f in dataclasses.fields(cls) if f.init} if cls else set()
        own = {name for name, row in table.items() if row.kind}
        fixed = {name for name, row in table.items() if row.ft}
        assert set(setting_types(section)) == (fields | own) - fixed
    assert setting_types("model") == {"name": str, "bits": int | None, "method": setting_types("model")["method"]}


def test_what_a_constructor_does_not_take_is_no_setting(monkeypatch):
    @dataclasses.dataclass
    class Model:
        given: int = 0
        computed: int = dataclasses.field(init=False, default=0)

    monkeypatch.setattr("ft_notebooks.cli.settings.sections", lambda: {"model": Section(Model, {})})
    assert setting_types("model") == {"given": int}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_wrong_value_is_answered_in_words(section):
    for key, kind in setting_types(section).items():
        try:
            read_settings(overrides=[f"{section}.{key}=[?]"])  # refused by every type but texts
        except ValueError as e:
            said = str(e).removeprefix(f"--set {section}.{key}=[?]: ")
            assert said.startswith(f"{key} must be ") and said.endswith(", got '[?]'")
            types = ("[str", "|", "Optional", "Union", "typing", "class", "None", "peft.")
            assert not any(word in said for word in types), said
        else:
            assert "str" in str(kind), key


@pytest.mark.parametrize(
    "setting, said",
    [
        ("lora.modules_to_save={}", "a list of words, or none"),
        ("lora.layers_to_transform=a,b", "a list of whole numbers or a whole number, or none"),
        ("lora.rank_pattern=8", "a dict, or none"),
        ("lora.init_lora_weights=x", "true or false or 'gaussian' or "),
        ("model.bits=many", "a whole number, or none"),
        ("sft.eval_steps=often", "a number, or none"),
        ("sft.packing=yep", "true or false"),
    ],
)
def test_the_words_for_a_type(setting, said):
    with pytest.raises(ValueError, match=f"must be {said}"):
        read_settings(overrides=[setting])


@pytest.mark.parametrize("text", ["lm_head", "lm_head,", " ['lm_head'] "])
def test_a_list_of_one_needs_no_comma(text):
    assert read_settings(overrides=[f"lora.modules_to_save={text}"])["lora"] == {"modules_to_save": ["lm_head"]}
    assert read_settings(overrides=["dpo.loss_weights=0.5"])["dpo"] == {"loss_weights": [0.5]}
    assert read_settings(overrides=["lora.modules_to_save=none"])["lora"] == {"modules_to_save": None}


@pytest.mark.parametrize("text, value", [("true", True), ("TRUE", True), ("False", False), ("false", False)])
def test_false_is_not_true(text, value):
    for key in ("packing", "bf16", "include_num_input_tokens_seen"):  # bool, bool | None, str | bool
        assert read_settings(overrides=[f"sft.{key}={text}"])["sft"][key] is value


@pytest.mark.parametrize(
    "text, line",
    [
        ("[sft]\n# learnin_rate = 1\n\n  learnin_rate=1\n", 4),
        ("# a form feed \x0c and a separator \u2028 break no line\n[sft]\nlearnin_rate = 1", 3),
        ("[lora]\ntarget_modules =\n  ['q_proj']\n  # r = 8\n[sft]\nr = 8\n", 6),
        ("[lora]\nr = 8\n[sft]\n# r = 8\nr = 8", 5),
        ("[model]\r\nbits = 16\r\n\r\n[ sft ]\r\nlearning_rate = 1", 4),
        ("[model]\nbits = 16\n[stf]\n", 3),
        ("[model]\nbits = 16\n[sft]\nseed = 1\n\n[DEFAULT]\nr = 8", 6),
        ("[sft]\nseed = one = two", 2),
    ],
)
def test_the_line_is_the_one_that_an_editor_shows(tmp_path, text, line):
    file = tmp_path / "settings.ini"
    file.write_bytes(text.encode())
    with pytest.raises(ValueError) as e:
        read_settings(file)
    assert str(e.value).startswith(f"{file}:{line}: ")


@pytest.mark.parametrize("override", ["sft.max_steps", "max_steps=3", "=3", ""])
def test_an_override_that_is_no_setting_is_answered_with_an_example(override):
    with pytest.raises(ValueError, match="write it as section.key=value, for instance"):
        read_settings(overrides=[override])


def test_an_override_may_hold_spaces_and_signs():
    read = read_settings(overrides=[" sft.run_name = a=b ", "sft.optim_args=x=1,y=2"])
    assert read["sft"] == {"run_name": "a=b", "optim_args": "x=1,y=2"}


def test_what_is_not_set_is_not_there(tmp_path):
    file = tmp_path / "settings.ini"
    file.write_text("[lora]\nr = 8\n")
    assert read_settings(file) == {**{section: {} for section in SECTIONS}, "lora": {"r": 8}}
    assert read_settings(file)["lora"] is not read_settings(file)["lora"]


def test_a_comment_may_stand_behind_a_header(tmp_path):
    (tmp_path / "settings.ini").write_text("[sft] # mine\nmax_steps = 3\n[lora]; likewise\nr = 4\n")
    settings = read_settings(tmp_path / "settings.ini")
    assert (settings["sft"], settings["lora"]) == ({"max_steps": 3}, {"r": 4})
