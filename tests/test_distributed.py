"""Two processes on one machine (gloo): the same losses and weights as one, whatever a batch holds; kills and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dpa import train
from tests.conftest import ROOT, command, weights

LAUNCH = ROOT / "dpa" / "launch"


def torchrun(*words, processes: int = 2) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = 240) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"the processes hang:\n{process.communicate()[0][-3000:]}") from None
    return output


def kill(process: subprocess.Popen) -> None:
    """SIGKILL the launcher and the processes that it started, which are in sessions of their own."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.send_signal(signal.SIGKILL)


def log(folder: Path, name: str) -> list[float]:
    return [row[name] for row in json.loads((folder / "log.json").read_text()) if name in row]


@pytest.fixture
def mixed(data, tmp_path) -> Path:
    """Questions of which every other has no picture, so that a process may get a batch without any."""
    rows = json.loads((data / "questions.json").read_text())[:20]
    for number, row in enumerate(rows):
        if number % 2 and "image" in row:
            del row["image"]
            row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    file = tmp_path / "mixed.json"
    file.write_text(json.dumps(rows))
    return file


def test_two_processes_train_as_one(tiny_models, data, mixed, tmp_path):
    """All three stages, with grouping by length, batches of 1 in stage 3, half of them without a picture."""
    flags = ["--train_sampling_strategy", "group_by_length", "--instruct-data", str(mixed), "--use_cpu", "true"]
    one = command(tiny_models, data, tmp_path / "one", *flags, "--per_device_train_batch_size", "2")
    assert train.main(one) == 0
    two = command(tiny_models, data, tmp_path / "two", *flags, "--per_device_train_batch_size", "1")
    process = torchrun("-m", "dpa.train", *two)
    output = finish(process)
    assert process.returncode == 0, output[-3000:]
    for stage in ("proxy", "connector", "instruct"):
        folders = [tmp_path / name / "small" / stage for name in ("one", "two")]
        for name in ("loss", "grad_norm", "nll"):
            assert log(folders[1], name) == pytest.approx(log(folders[0], name), rel=2e-3, abs=1e-5), (stage, name)
        before, after = (weights(folder) for folder in folders)
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=5e-5, rtol=2e-3)
        lineage = json.loads((folders[1] / "lineage.json").read_text())
        assert (lineage["engine"], lineage["processes"]) == ("plain", 2)


def test_killed_on_two_processes_and_resumed_on_one(tiny_models, data, tmp_path):
    flags = [
        "--save_steps",
        "5",
        "--use_cpu",
        "true",
        "--per_device_train_batch_size",
        "4",
    ]  # 4 x 2 divides the 40 captions
    arguments = command(tiny_models, data, tmp_path / "a", *flags, recipe="small_cmo", stage="connector", steps=60)
    process = torchrun("-m", "dpa.train", *arguments)
    partial = tmp_path / "a" / "small_cmo" / "connector.partial"
    deadline = time.time() + 120
    while not list(partial.glob("checkpoint-*/complete")) and time.time() < deadline:
        time.sleep(0.02)
    kill(process)
    output = process.communicate()[0]
    assert list(partial.glob("checkpoint-*/complete")), output[-3000:]
    assert not partial.with_name("connector").exists()
    assert train.main(arguments) == 0
    whole = command(tiny_models, data, tmp_path / "b", *flags, recipe="small_cmo", stage="connector", steps=60)
    assert train.main(whole) == 0
    resumed, unbroken = (weights(tmp_path / name / "small_cmo" / "connector") for name in "ab")
    for name in unbroken:
        torch.testing.assert_close(resumed[name], unbroken[name], atol=1e-4, rtol=1e-3)


def test_bad_input_ends_every_process(tiny_models, data, tmp_path):
    rows = json.loads((data / "captions.json").read_text())
    rows[3]["image"] = "gone.png"
    (tmp_path / "broken.json").write_text(json.dumps(rows))
    flags = ["--data", str(tmp_path / "broken.json"), "--use_cpu", "true"]
    arguments = command(tiny_models, data, tmp_path / "runs", *flags, recipe="small_vanilla", stage="connector")
    process = torchrun("-m", "dpa.train", *arguments)
    output = finish(process, 120)
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert errors and all("record 4 (id '3')" in line and "gone.png does not exist" in line for line in errors)
    assert not (tmp_path / "runs" / "small_vanilla" / "connector").exists()


FSDP = """
import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from dpa.loss import batch_loss
from dpa.methods import CMO
from dpa.model import connect_text_only, freeze_for
from tests.test_distributed import model_and_batches

dist.init_process_group("gloo")
rank = dist.get_rank()
model, batches = model_and_batches(sys.argv[1])
freeze_for(model, "instruct")
connect_text_only(model)
plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True, state_dict_type="SHARDED_STATE_DICT"
)
state = SimpleNamespace(fsdp_plugin=plugin)
accelerator = SimpleNamespace(
    state=state, torch_device_mesh=None, mixed_precision="no", is_main_process=not rank, device=torch.device("cpu")
)
model = fsdp2_prepare_model(accelerator, model).train()
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
losses = []
for step in range(2):
    loss = batch_loss(model, batches[(rank + step) % 2], CMO, model)  # a picture on one rank, text alone on the other
    loss.total.backward()  # the gradient is averaged over ranks: one sample each
    losses.append(loss.total.detach())
    optimizer.step()
    optimizer.zero_grad()
whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
summed = torch.stack(losses)
dist.all_reduce(summed)
if rank == 0:
    save_file({n: t.contiguous().clone() for n, t in whole.items()} | {"losses": summed / 2}, sys.argv[2])
dist.barrier()
os._exit(0)  # gloo's threads may outlive FSDP's on the way out: "terminate called without an active exception"
"""


def model_and_batches(tokenizer_folder: str):
    """A tiny LLaVA and two batches of one sample: with a picture, without."""
    from transformers import AutoTokenizer

    from dpa.model import compose
    from tests.conftest import tiny_llm, tiny_tower

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = compose(tiny_llm("qwen2", vocab_size=len(tokenizer)), tiny_tower(), tokenizer)
    image, generator = model.config.image_token_id, torch.Generator().manual_seed(0)
    batches = []
    for with_picture in (True, False):
        ids = torch.randint(20, 90, (1, 14), generator=generator)
        labels = ids.clone()
        labels[:, :10] = -100
        if with_picture:
            ids[:, 1:10] = image
        batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        if with_picture:
            batch["pixel_values"] = torch.randn(1, 3, 24, 24, generator=generator)
        batches.append(batch)
    return model, batches


def test_fsdp2_as_accelerate_wraps_it_gives_the_losses_and_weights_of_one_process(tmp_path, tiny_models):
    """Trainer ignores FSDP without a GPU, so accelerate's own preparation is called on two gloo processes."""
    from dpa.loss import batch_loss
    from dpa.methods import CMO
    from dpa.model import freeze_for

    (tmp_path / "fsdp.py").write_text(FSDP)
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        process = torchrun(tmp_path / "fsdp.py", tiny_models["llm"], tmp_path / "out.safetensors")
    finally:
        del os.environ["PYTHONPATH"]
    output = finish(process, 120)
    assert process.returncode == 0, output[-3000:]
    model, batches = model_and_batches(str(tiny_models["llm"]))
    freeze_for(model.train(), "instruct")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        total = sum(batch_loss(model, batch, CMO).total for batch in batches) / 2
        total.backward()
        losses.append(total.detach())
        optimizer.step()
        optimizer.zero_grad()
    gathered = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(gathered.pop("losses"), torch.stack(losses), atol=1e-5, rtol=1e-5)
    own = model.state_dict()
    assert gathered.keys() == own.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(gathered[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


TOLD = """
import json, os
from accelerate.utils import FullyShardedDataParallelPlugin as Plugin
plugin = Plugin()
told = [plugin.fsdp_version, plugin.reshard_after_forward, str(plugin.state_dict_type), getattr(plugin.auto_wrap_policy, "__name__", None)]
print(json.dumps({"precision": os.environ["ACCELERATE_MIXED_PRECISION"], "fsdp": told}))
"""


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_configurations_are_accelerates(name, tmp_path):
    """The launcher itself reads each file and hands it on to the process that it starts."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    (tmp_path / "told.py").write_text(TOLD)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / f"{name}.yaml"]
    done = subprocess.run(
        [*launcher, "--num_processes", "1", tmp_path / "told.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["precision"] == "bf16"
    if name == "fsdp2":
        assert told["fsdp"] == [2, True, "StateDictType.SHARDED_STATE_DICT", "transformer_auto_wrap_policy"]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_configurations_are_read_by_transformers(stage):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(str(LAUNCH / f"zero{stage}.json"))
    assert (config.is_zero2(), config.is_zero3()) == (stage == 2, stage == 3)
    assert config.get_value("train_batch_size") == config.get_value("gradient_accumulation_steps") == "auto"
    if stage == 3:  # or the result could not be written whole
        assert config.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True


def test_the_slurm_example_is_a_script():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sh"], check=True)
    text = (LAUNCH / "slurm.sh").read_text()
    assert "-m dpa.train" in text and "zero2.json" in text and (LAUNCH / "zero2.json").is_file()
