"Model cards in checkpoints are made of templates, which the libraries compile anew: 18 ms of each save."

import importlib.util
from pathlib import Path


def compile_once() -> None:
    "From now on this process and its forks compile each template once; those of a checkpoint are compiled at once."
    import jinja2
    from huggingface_hub import ModelCard

    compiled, compile_template = {}, jinja2.Environment.compile

    def look_up(self, source, *args, **kwargs):
        settings = type(self), self.autoescape, self.trim_blocks, self.lstrip_blocks, *self.extensions
        key = (source, settings, args, *kwargs.items())
        if key not in compiled:
            compiled[key] = compile_template(self, source, *args, **kwargs)
        return compiled[key]

    jinja2.Environment.compile = look_up
    [trl] = importlib.util.find_spec("trl").submodule_search_locations
    for template in (Path(ModelCard.default_template_path), Path(trl, "templates", "lm_model_card.md")):
        if template.is_file():
            jinja2.Template(template.read_text(encoding="utf-8"))
