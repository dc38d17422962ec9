"""Defaults of libraries, changed: what a release may do overnight, each making a sentence false.

FT_PLANT=NAME pytest -k NOTEBOOK --junitxml=report.xml runs a notebook with the changed default; then
tools/broken_claims.py report.xml must quote the sentence. .ci/README.md has what came out.
"""

import inspect


def _change(function, **new):
    "Gives parameters of the function another default, for all who have imported it already too."
    own = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}
    assert new.keys() <= own.keys() and len(own) == len(function.__defaults__)
    function.__defaults__ = (*(own | new).values(),)


def accelerate():
    from accelerate.data_loader import BatchSamplerShard

    _change(BatchSamplerShard.__init__, even_batches=False)


def datasets():
    from datasets.packaged_modules.csv.csv import CsvConfig

    _change(CsvConfig.__init__, keep_default_na=False)


def peft():
    from peft import PeftModel

    _change(PeftModel.from_pretrained.__func__, is_trainable=True)


def transformers():
    from transformers import BitsAndBytesConfig

    _change(BitsAndBytesConfig.__init__, bnb_4bit_quant_type="nf4")


def trl():
    from trl import SFTConfig

    _change(SFTConfig.__init__, max_length=2048)


NOTICED = {  # by which notebook
    accelerate: "package/distributed/uneven_batches",
    datasets: "package/data/table_files",
    peft: "package/lora/adapter_folder",
    transformers: "package/loading/quantized_loading",
    trl: "03_tokenizer_and_padding",
}
