"Edges of `ft_notebooks.training.config` and the releases that an error names: fields of other releases, and numbers."

import dataclasses
import re

import peft
import pytest
import transformers
import trl
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ft_notebooks.core.errors import releases
from ft_notebooks.training.batch_plan import Plan
from ft_notebooks.training.config import check_hub, run_config, split_overrides


@dataclasses.dataclass
class OlderConfig:
    "A config of a release without the fields that came later."

    output_dir: str
    max_length: int | None = None
    use_cpu: bool = False


def test_a_field_that_the_installed_release_lacks_is_refused_by_name_and_version(tmp_path, monkeypatch):
    monkeypatch.setattr(OlderConfig, "__module__", "trl.trainer.sft_config")
    said = (
        f"OlderConfig has no field 'learning_rate' in trl {trl.__version__}, and this run sets it; install a newer "
        "release"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        run_config(OlderConfig, tmp_path, Plan({"use_cpu": True}, ""))


def test_the_releases_of_a_config_are_those_of_all_packages_that_its_fields_come_from():
    assert (
        releases(SFTConfig)
        == releases(DPOConfig)
        == f"trl {trl.__version__} and transformers {transformers.__version__}"
    )
    assert releases(LoraConfig) == f"peft {peft.__version__}"
    assert releases(OlderConfig) == __name__  # of no package


def test_rows_end_to_end_are_cut_by_nobody_after_they_were_encoded(tmp_path):
    chosen = Plan({"padding_free": True, "use_cpu": True, "bf16": False}, "")
    assert run_config(SFTConfig, tmp_path, chosen, {"max_length": 512}).max_length is None
    packed = {"packing": True, "max_length": 512}
    assert run_config(SFTConfig, tmp_path, chosen, packed).max_length == 512


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("learning_rate", "2e-4", "a number, got '2e-4'; write it without quotes"),
        ("max_steps", "3", "a whole number, got '3'"),
    ]
    + [
        ("max_steps", 2.5, "a whole number"),
        ("learning_rate", float("nan"), "a number, got nan"),
        ("seed", True, "a whole number"),
    ]
    + [
        ("learning_rate", None, "a number, got None"),
        ("warmup_steps", [1], "a number"),
        ("save_total_limit", "2", "a whole"),
    ]
    + [("learning_rate", float("inf"), "a number, got inf")],
)
def test_a_number_that_is_none_is_refused_by_name(name, value, complaint):
    with pytest.raises(ValueError, match=f"{name} must be {complaint}"):
        split_overrides({name: value}, SFTConfig, SFTTrainer)


@pytest.mark.parametrize(
    "given",
    [{"learning_rate": 1}, {"max_steps": 3.0}, {"save_total_limit": None}, {"eval_steps": 0.5}, {"max_length": None}]
    + [
        {"pad_to_multiple_of": "auto"},
        {"lr_scheduler_type": "cosine"},
        {"warmup_steps": 0.05},
        {"report_to": ["none"]},
    ],
    ids=str,
)
def test_numbers_of_every_kind_and_what_is_no_number_at_all_pass(given):
    for config, trainer in ((SFTConfig, SFTTrainer), (DPOConfig, DPOTrainer)):
        assert split_overrides(given, config, trainer) == (given, {})


@pytest.mark.parametrize("name", ["seed", "data_seed"])
@pytest.mark.parametrize("value", [-1, 2**32, 10**20])
def test_a_seed_that_numpy_does_not_take_is_refused_with_the_range(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} .*usual is 0 to 4294967295"):
        split_overrides({name: value}, SFTConfig, SFTTrainer)
    assert split_overrides({name: 2**32 - 1}, SFTConfig, SFTTrainer)[0] == {name: 2**32 - 1}


@pytest.mark.parametrize("name", [None, "", "notes", "a/b/c"])
def test_nothing_is_pushed_without_the_name_of_a_repository(name):
    with pytest.raises(ValueError, match="hub_model_id must name the repository as owner/name"):
        split_overrides({"push_to_hub": True, "hub_model_id": name}, SFTConfig, SFTTrainer)


def test_nothing_is_pushed_without_a_login_and_a_new_repository_is_private(monkeypatch, tmp_path):
    given = {"push_to_hub": True, "hub_model_id": "me/notes"}
    monkeypatch.setattr("ft_notebooks.training.config.get_token", lambda: None)
    with pytest.raises(ValueError, match="there is no login for the hub; run `hf auth login` first"):
        split_overrides(given, SFTConfig, SFTTrainer)
    monkeypatch.setattr("ft_notebooks.training.config.get_token", lambda: "mine")
    split_overrides(given, SFTConfig, SFTTrainer)
    made = run_config(SFTConfig, tmp_path, Plan({"use_cpu": True, "bf16": False}, ""), given)
    assert made.hub_private_repo is True
    assert (
        run_config(
            SFTConfig, tmp_path, Plan({"use_cpu": True}, ""), {"hub_private_repo": False, "bf16": False}
        ).hub_private_repo
        is False
    )


def test_a_token_is_no_setting_since_the_run_that_holds_it_may_be_uploaded():
    with pytest.raises(ValueError, match="^hub_token: .*uploaded, with the run; run `hf auth login`") as error:
        split_overrides({"hub_token": "hf_secret"}, SFTConfig, SFTTrainer)
    with pytest.raises(ValueError, match="push_to_hub_token: "):
        check_hub({"push_to_hub_token": "hf_secret"})
    assert "hf_secret" not in str(error.value)
    check_hub({"hub_token": None})
