"Edges of `ft_notebooks.core.fingerprints`: containers, boundaries between rows, and every dtype."

import pytest
import torch
from datasets import Dataset, IterableDataset

from ft_notebooks.core.fingerprints import data_fingerprint, fingerprint

ROWS = [{"input_ids": [n, n + 1, n + 2], "labels": [n, n + 1, n + 2]} for n in range(10, 18)]


def test_rows_are_known_by_their_content_in_any_container():
    data = Dataset.from_list(ROWS)
    assert data_fingerprint(data) == data_fingerprint(data.select([1, 0, *range(2, 8)]).select([1, 0, *range(2, 8)]))
    assert data_fingerprint({"a": data, "b": None}) == {"a": data_fingerprint(data), "b": None}
    assert (
        data_fingerprint(data.rename_column("labels", "other"))
        != data_fingerprint(data)
        != data_fingerprint(data.remove_columns("labels"))
    )
    assert data_fingerprint(data) != data_fingerprint(
        Dataset.from_list([{**row, "input_ids": row["input_ids"] + [1]} for row in ROWS])
    )
    boundary = [Dataset.from_dict({"input_ids": ids}) for ids in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3], []])]
    assert len(set(map(data_fingerprint, boundary))) == 3
    texts = [Dataset.from_dict({"messages": [[{"role": "user", "content": text}]]}) for text in ("a", "b", "a")]
    assert data_fingerprint(texts[0]) == data_fingerprint(texts[2]) != data_fingerprint(texts[1])
    assert data_fingerprint(Dataset.from_dict({"input_ids": [[1, None]]})) != data_fingerprint(
        Dataset.from_dict({"input_ids": [[1, 0]]})
    )
    assert (
        data_fingerprint(IterableDataset.from_generator(lambda: iter(ROWS))) == "a stream"
        and data_fingerprint(None) is None
    )
    many = Dataset.from_dict({"input_ids": [[n] for n in range(2500)]})
    assert data_fingerprint(many) != data_fingerprint(many.select([*range(2499), 0])) and data_fingerprint(
        many
    ).startswith("2500 rows")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool]
)
def test_a_fingerprint_sees_every_element_of_every_type(dtype):
    for size in (1, 2, 3, 7, 8, 9, 17):
        zeros, seen = torch.zeros(size, dtype=dtype), set()
        for place in range(size):
            changed = zeros.clone()
            changed[place] = 1
            seen.add(fingerprint(changed).item())
        assert len(seen | {fingerprint(zeros).item()}) == size + 1
    table = torch.arange(12.0).reshape(3, 4)
    assert fingerprint(table.T) == fingerprint(table.T.contiguous()) != fingerprint(table)
