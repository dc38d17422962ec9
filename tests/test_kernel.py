"What a kernel alone can prove: one for both tests, which begins without the libraries."

import subprocess

import pytest
from ranks_of import free_port
from small_runs import HANGS

pytestmark = pytest.mark.whole

FIRST = """
from accelerate import notebook_launcher

def train():
    import torch.distributed
    torch.distributed.init_process_group("gloo")
    print("reached", flush=True)

notebook_launcher(train, num_processes=2, use_port="PORT")
"""
IMPORTED = """
import ft_notebooks.sft.trainer
notebook_launcher(train, num_processes=2, use_port="PORT")
"""
LAUNCH = """
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
how = {"nproc_per_node": 2, "start_method": "fork", "max_restarts": 0, "run_id": "kernel"}
where = {"rdzv_endpoint": "localhost:0", "rdzv_backend": "c10d"}

def train():
    from ft_notebooks.course.example_task import appointments
    from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
    fields = {"output_dir": "run", "effective_batch": 4, "max_steps": 1, "bf16": False}
    fields |= {"report_to": "none", "save_strategy": "no"}
    trainer = ft_notebooks.sft.trainer.sft_trainer(tiny_model(), tiny_tokenizer(), appointments(8), **fields)
    trainer.train()
    return trainer.args.world_size

found = elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, **how, **where), train)()
assert found == {0: 2, 1: 2}
"""


KERNEL = """
import itertools, types
import ft_notebooks.training.progress_and_plots as tracking
from transformers import Trainer, TrainingArguments
from ft_notebooks.loading.example_models import tiny_model
rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
args = TrainingArguments("picture", max_steps=4, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no",
                         eval_strategy="steps", eval_steps=2, disable_tqdm=False)
trainer = tracking.watch(Trainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows))
tracking._LiveCurve.SHARE = 0
tracking.time = types.SimpleNamespace(monotonic=itertools.count(0, 10).__next__)  # ten seconds a look
trainer.train();
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "`run(code)`: how a cell ends, its error, and all messages that it sends."
    manager = pytest.importorskip("jupyter_client.manager")
    folder = tmp_path_factory.mktemp("kernel")
    kernel, client = manager.start_new_kernel(HANGS, "python3", cwd=str(folder), stderr=subprocess.DEVNULL)

    def run(code):
        seen = []
        code = code.replace("PORT", str(free_port()))
        reply = client.execute_interactive(code, timeout=HANGS, output_hook=seen.append)["content"]
        return reply["status"], reply.get("evalue", ""), seen

    yield run
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


def streams(seen, name="stdout"):
    return "".join(m["content"]["text"] for m in seen if m["msg_type"] == "stream" and m["content"]["name"] == name)


def test_a_kernel_launches_before_the_imports_or_with_torch_s_launcher_after_them(run):
    status, error, seen = run(FIRST)
    assert (status, error) == ("ok", "") and streams(seen).count("reached") == 2, seen
    status, error, _ = run(IMPORTED)
    assert status == "error" and "`bitsandbytes`" in error
    status, error, seen = run(LAUNCH)
    assert (status, error) == ("ok", ""), seen


def test_in_a_real_kernel_one_picture_changes_and_nothing_else_is_shown(run):
    status, _, seen = run(KERNEL)
    assert status == "ok", seen
    shown = [m for m in seen if m["msg_type"] in ("display_data", "update_display_data", "execute_result")]
    assert [m["msg_type"] for m in shown] == ["display_data"] + ["update_display_data"] * 4
    assert len({m["content"]["transient"]["display_id"] for m in shown}) == 1
    assert all("image/png" in m["content"]["data"] and "text/html" not in m["content"]["data"] for m in shown)
    assert not streams(seen)
