"Each step that `ft gpu` runs on a card runs on the CPU, too, and gives figures that can be compared."

import numpy as np
import pytest

from ft_notebooks.course.gpu_figures import NotHere, difference
from ft_notebooks.course.gpu_speed import SIZES, speeds
from ft_notebooks.course.gpu_steps import STEPS


@pytest.mark.whole
@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_figures(name, tmp_path):
    try:
        figures = STEPS[name].run(tmp_path)
    except NotHere as missing:
        pytest.skip(str(missing))
    assert figures and all(difference(figure, figure) == 0 for figure in figures.values())
    numbers = [figure for figure in figures.values() if not isinstance(figure, str)]
    assert all(np.isfinite(figure).all() and np.any(figure) for figure in numbers)  # 0 would agree with anything small


def test_lora_and_qlora_of_each_size_are_measured_with_both_trainers():
    assert list(speeds(("135M", "8B"))) == ["LoRA 135M", "QLoRA 135M", "LoRA 8B", "QLoRA 8B"]
    assert all(len(both) == 2 for both in speeds(tuple(SIZES)).values())
