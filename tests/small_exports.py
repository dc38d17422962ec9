"Exports that are checked on few texts, for tests of what an export leaves: test_planted_failures.py checks on all."

from ft_notebooks.export import check, run_export
from ft_notebooks.export.parity import PROSE
from ft_notebooks.export.token_suite import token_strings


def on_few_texts(patch) -> None:
    "Every sixteenth string and forty characters of prose, as long as the monkeypatch lasts."
    for module in (check, run_export):
        patch.setattr(module, "token_strings", lambda *of: token_strings(*of)[::16])
        patch.setattr(module, "PROSE", PROSE[:48])
