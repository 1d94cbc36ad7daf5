"""The Trainer of all three stages: our loss, exact normalisation, checkpoints that are complete or absent, health.

Each log line has, beside the loss: `nll` (unweighted loss, nats a label token), `at_low` and `at_high` (shares of label
tokens whose relevance was clipped to a bound), `relevance` (their mean), `tokens_per_s` and `samples_per_s` over all
processes, `padding` (share of the batches' places), `max_length` (of a batch), `model_tflops` (model TFLOP/s of a process,
recomputation not counted), and on a GPU `mfu` (that over the device's dense bf16 peak) and `peak_gib` (of the process
with most).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dpa.costs import peak_flops
from dpa.errors import InputError
from dpa.lineage import file_hash, flush, write_json
from dpa.loss import IGNORE, TINY, BatchLoss, batch_loss, num_items
from dpa.methods import Weighting

TRAINED_WEIGHTS = "trained.safetensors"
MARKER = "complete"
PATIENCE = 100  # steps in which every relevance may lie at one bound before the run is stopped
COUNTED = ("tokens", "places", "samples", "image_tokens", "tiles", "labels", "nll", "at_low", "at_high", "relevance")


class DPATrainer(Trainer):
    """Trains whatever requires a gradient in `model` under a weighting rule.

    A checkpoint holds the trained weights only (LoRA, connector, or connector and LLM): the frozen rest comes from the
    stage's parents. They are loaded back strictly, by the model's own names. Trainer's default would save a LLaVA model
    under other names and silently load none of them on resume.
    """

    # What compute_loss returns is divided by the global count already; in the released form it is a mean per
    # micro-batch, which `compute_loss` divides by the accumulation steps itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        weighting: Weighting,
        step_flops: Callable[[dict[str, float]], float] | None = None,
        **kwargs: Any,
    ) -> None:
        """step_flops: model FLOPs of batches, from their counts (`COUNTED`), for the log's `mfu`."""
        super().__init__(*args, **kwargs)
        self.weighting, self.step_flops = weighting, step_flops
        if self.weights_are_global and self.is_deepspeed_enabled:
            raise InputError(
                "--normalise global divides the gradient once all weights are known, which DeepSpeed keeps to itself; choose sample, or torchrun or FSDP2"
            )
        self._sums = dict.fromkeys(COUNTED, 0.0)
        self._longest, self._since = 0, 0.0
        self._mass: Tensor | float = 0.0  # weights of the global batch so far, and its loss times them: `global`
        self._weighed: Tensor | float = 0.0
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
        self.add_callback(HealthCheck(weighting))
        self.add_callback(FrozenStayFrozen())

    def _get_train_sampler(self, train_dataset: Any = None):
        """Reference: the released scripts group stage 3 by length and, before that, by modality."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(dataset, "lengths"):
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * max(self.args.world_size, 1)
        return GroupedByLength(batch, dataset.lengths, self.args.data_seed or self.args.seed)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        """This micro-batch's share of the global loss (the paper's CMO loss)."""
        self._since = self._since or time.perf_counter()  # not from the set-up on
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        # accelerate wraps the model's own forward alone; the blind pass must run at the same precision
        with self.accelerator.autocast():
            loss = batch_loss(model, inputs, self.weighting, unwrapped)
        if model.training:
            self._count(inputs, loss, getattr(unwrapped.config, "image_token_id", None))
        if self.weights_are_global and model.training:
            self._mass, self._weighed = self._mass + loss.num_items, self._weighed + loss.total.detach()
            share = loss.total * self.accelerator.num_processes
        elif num_items_in_batch is None:  # evaluation, or normalised by rank
            share = loss.mean / (self.current_gradient_accumulation_steps if model.training else 1)
        else:
            share = loss.total / num_items_in_batch * self.accelerator.num_processes  # data parallel averages gradients
        return (share, loss) if return_outputs else share

    @property
    def weights_are_global(self) -> bool:
        """Whether the weights are normalised over the global batch."""
        return self.weighting.rule != "none" and self.weighting.normalisation == "global"

    def training_step(self, model: torch.nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's; where weights are normalised over the global batch, their sum is known with its last micro-batch, and
        the gradient is divided by it then. What is logged is the loss so divided.
        """
        step = super().training_step(model, inputs, *args, **kwargs)
        if not self.weights_are_global:
            return step
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(step)
        both = torch.stack([torch.as_tensor(x, device=step.device).double() for x in (self._mass, self._weighed)])
        mass, weighed = self.accelerator.reduce(both, "sum").unbind()
        self._mass = self._weighed = 0.0
        mass = mass.clamp(min=TINY)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(float(mass))
        return (weighed / mass).to(step.dtype)

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Trainer's, which under DeepSpeed rounds all floats to its precision; cached scores stay as they are."""
        exact = {name: inputs[name].to(self.args.device) for name in ("blind_log_p", "blind_logit") if name in inputs}
        return super()._prepare_inputs(inputs) | exact

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """What the global batch is divided by: label tokens or samples over all micro-batches and processes; None where
        weights are normalised by rank, or over the global batch (`training_step`).

        Reference: the released form normalises within each micro-batch of each rank, so it has no global count.
        """
        if not batch_samples or (self.weighting.rule != "none" and self.weighting.normalisation != "sample"):
            return None
        count = torch.tensor(sum(num_items(batch, self.weighting) or 0 for batch in batch_samples), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def _count(self, inputs: dict, loss: BatchLoss, image_token: int | None = None) -> None:
        mask, pixels = inputs["attention_mask"], inputs.get("pixel_values")
        # several tiles a picture are padded with empty ones, which the tower does not see
        tiles = 0 if pixels is None else len(pixels) if pixels.dim() < 5 else pixels.flatten(2).any(2).sum()
        images = 0 if pixels is None else (inputs["input_ids"] == image_token).sum()
        labels = (inputs["labels"] != IGNORE).sum()
        means = (mean * labels for mean in (loss.nll, loss.at_low, loss.at_high, loss.relevance))
        starts = inputs.get("position_ids")  # of packed rows, which hold several samples
        samples = len(mask) if starts is None else ((starts == 0) & (mask == 1)).sum()
        counts = (mask.sum(), mask.numel(), samples, images, tiles, labels, *means)
        for name, value in zip(COUNTED, counts, strict=True):
            self._sums[name] = self._sums[name] + value  # on the device, without waiting for it
        self._longest = max(self._longest, mask.shape[1])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to each log what was counted since the last one, over all processes."""
        if "loss" in logs and self._sums["places"]:
            device = self.args.device
            sums = torch.stack(
                [torch.as_tensor(v, dtype=torch.float64, device=device).detach() for v in self._sums.values()]
            )
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            largest = torch.tensor([float(self._longest), peak], device=device)
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums, "sum")
                largest = self.accelerator.gather(largest[None]).amax(0)
            counts = dict(zip(COUNTED, sums.tolist(), strict=True))
            logs |= self._measures(counts, time.perf_counter() - self._since)
            logs["max_length"] = int(largest[0])
            if peak:
                logs["peak_gib"] = round(float(largest[1]), 2)
            self._sums, self._longest, self._since = dict.fromkeys(COUNTED, 0.0), 0, time.perf_counter()
        super().log(logs, *args, **kwargs)

    def _measures(self, counts: dict[str, float], seconds: float) -> dict[str, float]:
        contrastive = self.weighting.rule != "none"
        means = ("nll", "at_low", "at_high", "relevance") if contrastive else ("nll",)
        # six digits that count, so that next to nothing is not told as nothing, nor next to all as all
        measures = {name: float(f"{counts[name] / max(counts['labels'], 1):.6g}") for name in means}
        measures["tokens_per_s"] = round(counts["tokens"] / seconds, 1)
        measures["samples_per_s"] = round(counts["samples"] / seconds, 2)
        measures["padding"] = round(1 - counts["tokens"] / counts["places"], 4)
        if self.step_flops is not None:
            speed = self.step_flops(counts) / seconds / self.accelerator.num_processes
            measures["model_tflops"] = round(speed / 1e12, 6)
            if torch.cuda.is_available() and (peak := peak_flops(torch.cuda.get_device_name())):
                measures["mfu"] = round(speed / peak, 4)
        return measures

    @property
    def shards_weights(self) -> bool:
        """Whether an engine (FSDP, DeepSpeed) writes and reads the checkpoints' weights in its own layout."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's weights. An engine that shards them writes them with its optimiser, so nothing is gathered."""
        if not self.shards_weights:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)

    def gathered_state(self) -> dict[str, Tensor]:
        """All weights by the model's own names, whole, on the main process; every process must call it."""
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.deepspeed)
        return self.accelerator.get_state_dict(self.model_wrapped)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_state(self.model, state_dict), folder / TRAINED_WEIGHTS)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        start = time.perf_counter()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            if not is_disk_error(error):
                raise
            reason = str(error).splitlines()[0][:160]
            raise InputError(
                f"{self.args.output_dir}: the checkpoint of step {self.state.global_step} could not be written ({reason}); free space and run again to resume"
            ) from None
        self.accelerator.wait_for_everyone()  # the other processes write parts too
        if self.args.should_save:  # last, so that a checkpoint cut short has none
            flush(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
            marker = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / MARKER
            write_json(marker, self.engine() | {"files": _hashes(marker.parent, self.engine()["engine"])})
        self._since += time.perf_counter() - start  # the log's speeds are of training alone

    def engine(self) -> dict[str, Any]:
        """{"engine": plain, fsdp or deepspeed, "processes": their number}."""
        engine = "deepspeed" if self.is_deepspeed_enabled else "fsdp" if self.is_fsdp_enabled else "plain"
        return {"engine": engine, "processes": self.accelerator.num_processes}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        target = model if model is not None else self.model
        if self.shards_weights:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        state = load_file(Path(resume_from_checkpoint) / TRAINED_WEIGHTS)
        expected = {name for name, parameter in target.named_parameters() if parameter.requires_grad}
        if expected != state.keys():
            raise InputError(
                f"{resume_from_checkpoint}: holds other weights than this stage trains; delete the folder above it to start the stage again"
            )
        target.load_state_dict(state, strict=False)


def _hashes(checkpoint: Path, engine: str = "plain") -> dict[str, str | int]:
    """SHA-256 of each file of a checkpoint by its path in it; of an engine's shards, whole models, the size in bytes."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MARKER)
    measure = file_hash if engine == "plain" else lambda path: path.stat().st_size
    return {str(path.relative_to(checkpoint)): measure(path) for path in files}


def is_disk_error(error: Exception) -> bool:
    """Whether an error says that a file could not be written: libraries name a full disk differently."""
    words = ("PytorchStreamWriter", "iostream", "No space left", "unexpected pos", "inline_container")
    return isinstance(error, (OSError, SafetensorError)) or any(word in str(error) for word in words)


class GroupedByLength(Sampler[int]):
    """Random global batches, each in order of length, so that its micro-batches hold samples of like length.

    Which samples share a step is as random as without it, whatever the number of processes; the order follows from seed
    and epoch alone, so that a run resumes.
    """

    def __init__(self, global_batch: int, lengths: Sequence[int], seed: int) -> None:
        self.global_batch, self.lengths, self.seed, self.epoch = global_batch, torch.as_tensor(lengths), seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for batch in order.split(self.global_batch):
            yield from batch[self.lengths[batch].argsort(descending=True, stable=True)].tolist()


def trained_state(model: torch.nn.Module, state_dict: dict | None = None) -> dict[str, Tensor]:
    """The trained parameters by name, on the CPU; a tied weight appears once."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = state_dict if state_dict is not None else model.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in names}


def refuse_other_engine(checkpoint: Path, now: dict[str, Any]) -> None:
    """InputError when a checkpoint's optimiser cannot be taken over: DeepSpeed's parts belong to a number of processes."""
    made = _written(checkpoint)
    fixed = now["engine"] == "deepspeed" and made["processes"] != now["processes"]
    if made["engine"] != now["engine"] or fixed:
        raise InputError(
            f"{checkpoint}: was written by {made['processes']} processes with engine {made['engine']}, and cannot be resumed by {now['processes']} with {now['engine']}; start as before, or delete the folder above it to start the stage again"
        )


def newest_checkpoint(folder: Path, *, clean: bool = True) -> Path | None:
    """The last complete and undamaged checkpoint of an unfinished stage; with `clean`, incomplete ones are removed."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if not (path / MARKER).is_file():
            if clean:
                shutil.rmtree(path)
        elif (told := _written(path)).get("files") == _hashes(path, told.get("engine", "plain")):
            return path
        else:
            print(f"{path}: its files are not those that were written (a damaged disk?), passed over", file=sys.stderr)
            if clean:  # out of the way of the steps to come
                os.replace(path, path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
    return None


def _written(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's marker tells; {} where it cannot be read."""
    try:
        told = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


class QuietProgress(ProgressCallback):
    """One progress bar with the loss at its end, in place of a dictionary per log line."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", nll=f"{logs.get('nll', math.nan):.3f}")


class FrozenStayFrozen(TrainerCallback):
    """With activation checkpointing transformers has all embeddings ask for gradients, the frozen tower's too, and so sends
    a backward pass through it. Checkpointing that is not reentrant needs none of that.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        reentrant = (args.activation_checkpointing_kwargs or {}).get("use_reentrant", False)
        if args.activation_checkpointing and not reentrant:
            inner = model.get_base_model() if hasattr(model, "get_base_model") else model
            inner.disable_input_require_grads()


class HealthCheck(TrainerCallback):
    """Stop with a diagnosis when the run is not training: a loss that is 0 or no number, a gradient that is exactly 0,
    a weighting that gives every token the same.
    """

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting
        self.level_since: dict[str, int] = {}  # the step from which on every relevance lay at one bound

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        logs, step = logs or {}, state.global_step
        loss, norm = logs.get("loss"), logs.get("grad_norm")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"step {step}: the loss is {loss}; lower --learning_rate or train in float32, then start from the last checkpoint"
            )
        if loss is not None and logs.get("nll", loss) == 0.0:
            raise InputError(
                f"step {step}: the loss is exactly 0, there is nothing to learn; are the labels masked, or one token alone?"
            )
        if norm is not None and not math.isfinite(norm):
            raise InputError(
                f"step {step}: the gradient is {norm}; lower --learning_rate or train in float32, then start from the last checkpoint"
            )
        if norm is not None and norm == 0.0 and logs.get("learning_rate", 0.0) > 0.0:
            raise InputError(
                f"step {step}: the gradient is exactly 0, nothing trains; are all labels masked, or all weights frozen?"
            )
        for bound in ("at_low", "at_high"):
            if logs.get(bound) != 1.0:
                self.level_since.pop(bound, None)
            elif step - self.level_since.setdefault(bound, step) >= PATIENCE:
                value = self.weighting.low if bound == "at_low" else self.weighting.high
                raise InputError(
                    f"step {step}: for {PATIENCE} steps the relevance of every label lay at the bound {value}, so {self.weighting.rule} weighs nothing; does the picture reach the LLM, and are the bounds right?"
                )
