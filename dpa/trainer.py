"""The Trainer of all three stages: our loss, exact normalisation, checkpoints that are complete or absent."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dpa.errors import InputError
from dpa.loss import BatchLoss, batch_loss, num_items
from dpa.methods import Weighting

TRAINED_WEIGHTS = "trained.safetensors"
MARKER = "complete"


class DPATrainer(Trainer):
    """Trains whatever requires a gradient in `model` under a weighting rule.

    A checkpoint holds the trained weights only (LoRA, connector, or connector and LLM): the frozen rest comes from the
    stage's parents. They are loaded back strictly, by the model's own names. Trainer's default would save a LLaVA model
    under other names and silently load none of them on resume.
    """

    # What compute_loss returns is divided by the global count already; in the released form it is a mean per
    # micro-batch, which `compute_loss` divides by the accumulation steps itself.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, weighting: Weighting, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weighting = weighting
        self._sums: dict[str, Tensor] = {}
        self._micro_batches = 0
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
        self.add_callback(HealthCheck)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        """This micro-batch's share of the global loss (the paper's CMO loss)."""
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        # accelerate wraps the model's own forward alone; the blind pass must run at the same precision
        with self.accelerator.autocast():
            loss = batch_loss(model, inputs, self.weighting, unwrapped)
        self._remember(loss)
        total = loss.total
        projector = getattr(getattr(unwrapped, "model", None), "multi_modal_projector", None)
        if projector is not None and "pixel_values" not in inputs and model.training:
            # a batch without pictures gives the connector no gradient, on which data parallel would wait for ever
            total = total + 0.0 * sum(p.sum() for p in projector.parameters() if p.requires_grad)
        if num_items_in_batch is None:  # evaluation, or the released form
            share = total / max(loss.num_items, 1) / (self.current_gradient_accumulation_steps if model.training else 1)
        else:
            share = total / num_items_in_batch * self.accelerator.num_processes  # data parallel averages gradients
        return (share, loss) if return_outputs else share

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """What the global batch is divided by: label tokens or samples over all micro-batches and processes.

        Reference: the released form normalises within each micro-batch of each rank, so it has no global count.
        """
        if not batch_samples or (self.weighting.rule != "none" and self.weighting.form == "released"):
            return None
        count = torch.tensor(sum(num_items(batch["labels"], self.weighting) for batch in batch_samples), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def _remember(self, loss: BatchLoss) -> None:
        self._micro_batches += 1
        for name, value in (("nll", loss.nll), ("at_bounds", loss.at_bounds), ("relevance", loss.relevance)):
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to each log the plain loss, the share of weights at the bounds and the mean relevance since the last one."""
        if "loss" in logs and self._micro_batches:
            kept = ("nll",) if self.weighting.rule == "none" else tuple(self._sums)
            logs |= {name: round(float(self._sums[name]) / self._micro_batches, 5) for name in kept}
            self._sums, self._micro_batches = {}, 0
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_state(self.model, state_dict), folder / TRAINED_WEIGHTS)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # libraries name a full disk differently
            reason = str(error).splitlines()[0][:160]
            raise InputError(
                f"{self.args.output_dir}: the checkpoint of step {self.state.global_step} could not be written ({reason}); free space and run again to resume"
            ) from None
        if self.args.should_save:  # last, so that a checkpoint cut short has none
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / MARKER).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        target = model if model is not None else self.model
        state = load_file(Path(resume_from_checkpoint) / TRAINED_WEIGHTS)
        expected = {name for name, parameter in target.named_parameters() if parameter.requires_grad}
        if expected != state.keys():
            raise InputError(
                f"{resume_from_checkpoint}: holds other weights than this stage trains; delete the folder above it to start the stage again"
            )
        target.load_state_dict(state, strict=False)


def trained_state(model: torch.nn.Module, state_dict: dict | None = None) -> dict[str, Tensor]:
    """The trained parameters by name, on the CPU; a tied weight appears once."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = state_dict if state_dict is not None else model.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in names}


def newest_checkpoint(folder: Path, *, clean: bool = True) -> Path | None:
    """The last complete checkpoint of an unfinished stage; with `clean`, incomplete ones are removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / MARKER).is_file():
            complete.append(path)
        elif clean:
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class QuietProgress(ProgressCallback):
    """One progress bar with the loss at its end, in place of a dictionary per log line."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", nll=f"{logs.get('nll', math.nan):.3f}")


class HealthCheck(TrainerCallback):
    """Stop with a diagnosis when the run is not training: a loss that is no number, or a gradient that is exactly 0."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        loss, norm = (logs or {}).get("loss"), (logs or {}).get("grad_norm")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"step {state.global_step}: the loss is {loss}; lower --learning_rate or train in float32, then start from the last checkpoint"
            )
        if norm is not None and norm == 0.0 and logs.get("learning_rate", 0.0) > 0.0:
            raise InputError(
                f"step {state.global_step}: the gradient is exactly 0, nothing trains; are all labels masked, or all weights frozen?"
            )
