"""Makes the metrics of a step from what it did and the time it took."""

import resource
from collections.abc import Callable

import torch

from dsm_engine.model.config import ModelConfig
from dsm_engine.model.flops import flops_of_sums, mfu, peak_flops
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.metrics import StepMetrics
from dsm_engine.training.phases import StepTimes
from dsm_engine.training.slices import SliceTable
from dsm_engine.training.step import LossSum
from dsm_engine.training.stream import PackStream


class Meter:
    """Measures the steps of one run, on rank 0."""

    def __init__(
        self,
        recipe: TrainRecipe,
        model: ModelConfig,
        stream: PackStream,
        slices: SliceTable | None,
        context: ParallelContext,
    ) -> None:
        self._batch_size = recipe.training.global_batch_size
        self._num_slots = self._batch_size * recipe.data.seq_length
        self._model = model
        self._stream = stream
        self._slices = slices
        self._device = context.device
        self._num_gpus = context.world_size
        self._peak_flops = recipe.logging.peak_flops
        if self._peak_flops is None and self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device)
            self._peak_flops = peak_flops(name, recipe.training.precision)

    def of_step(
        self, step: int, packs: list[int], loss: LossSum, *, grad_norm: float, lr: float
    ) -> Callable[[StepTimes], StepMetrics]:
        """What makes the metrics once the step's times can be read. `step` counts this one."""
        memory = self._memory_peak()

        def measure(times: StepTimes) -> StepMetrics:
            seconds = times.total()
            num_tokens = self._stream.num_tokens(packs)
            consumed = step * self._batch_size
            return StepMetrics(
                step=step,
                loss=loss.mean,
                token_loss=loss.token_mean,
                grad_norm=grad_norm,
                lr=lr,
                num_tokens=num_tokens,
                num_slots=self._num_slots,
                num_supervised=loss.num_tokens,
                step_time_s=seconds,
                slots_per_s=self._num_slots / seconds,
                slots_per_s_per_gpu=self._num_slots / seconds / self._num_gpus,
                tokens_per_s_per_gpu=num_tokens / seconds / self._num_gpus,
                mfu=self._mfu(packs, seconds),
                memory_peak_bytes=memory,
                time_s=times.by_phase(),
                slices={} if self._slices is None else self._slices.losses(loss.slice_sums),
                consumed_samples=consumed,
                epoch=consumed / self._stream.num_packs,
            )

        return measure

    def _mfu(self, packs: list[int], seconds: float) -> float | None:
        if self._peak_flops is None:
            return None
        sum_lengths, sum_squares = self._stream.sums_of_lengths(packs)
        flops = flops_of_sums(
            self._model,
            num_slots=self._num_slots,
            sum_lengths=sum_lengths,
            sum_squares=sum_squares,
        )
        return mfu(flops.total, seconds, self._num_gpus, self._peak_flops)

    def _memory_peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
