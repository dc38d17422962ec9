"Edges of `ft_notebooks.settings`: every field that a library has, and every slip of the pen."

import dataclasses
import enum

import pytest

from ft_notebooks.settings import SECTIONS, convert, read_settings, setting_types


def plain_defaults():
    for section, cls in SECTIONS.items():
        known = setting_types(section)
        for field in dataclasses.fields(cls):
            if field.name in known and isinstance(field.default, (bool, int, float, str, type(None))):
                yield pytest.param(known[field.name], field.default, id=f"{section}.{field.name}")


@pytest.mark.parametrize("kind, default", list(plain_defaults()))
def test_every_default_of_every_field_survives_being_written_down(kind, default):
    text = default.value if isinstance(default, enum.Enum) else str(default)
    assert convert(text, kind) == default


@pytest.mark.parametrize("key", [f"{section}.{key}" for section in SECTIONS for key in setting_types(section)])
def test_every_key_is_known_by_its_own_name_and_refused_with_one_letter_more(key):
    with pytest.raises(ValueError, match="has no key"):
        read_settings(overrides=[f"{key}x=1"])


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
        ("[sft]\nmax_steps = 1\nmax_steps = 2", "already exists"),
        ("[sft]\nmax_steps 2", "parsing errors"),
        ("[lora]\nr = eight", "settings.ini:2: r must be a whole number, got 'eight'"),
        ("[model]\nmethod = qlora", "settings.ini:2: method"),
        ("[model]\nbits = 16.5", "settings.ini:2: bits"),
        ("[sft]\nlearning_rate = inf", "learning_rate must be a finite number, got 'inf'"),
        ("[sft]\nlearning_rate =", "settings.ini:2: learning_rate"),
        ("[DEFAULT]\nr = 8", r"no section \[DEFAULT\]"),
        ("[dpo]\nbeta = 0.1", r"no section \[dpo\]"),
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
