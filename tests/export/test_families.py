"Each family that `write_gguf` covers, with a head of its own and with the embedding as its head, computed by llama.cpp"

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from ft_notebooks.core.random_state import keep_random_state
from ft_notebooks.export.gguf_writer import ARCHITECTURES, write_gguf
from ft_notebooks.export.parity import PROSE, answer_parity, beyond_limits, text_parity
from ft_notebooks.inference.llama_cpp import llama_server
from ft_notebooks.loading.example_models import tiny_tokenizer

pytestmark = pytest.mark.whole

SIZES = {
    "vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_llama_cpp_computes_what_transformers_computes(family, tied, tmp_path):
    tok = tiny_tokenizer()
    config = AutoConfig.for_model(family, tie_word_embeddings=tied, **SIZES)
    with keep_random_state(0):
        model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "f32")
    prompts = [tok(text).input_ids for text in ("The dentist", "on Monday", "at nine")]
    with llama_server(tmp_path / "model.gguf", 256, exact=True) as server:
        answers = answer_parity(model, server, prompts, 16)
        prose = text_parity(model, server, tok(PROSE).input_ids[:64])
    assert beyond_limits("f32", answers, prose) == [] and answers.tokens > 16
