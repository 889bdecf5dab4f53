"""From what a compiled program does to how long it may take: an estimate, and what it rests on."""

import dataclasses

from sgm_jax.parallel.topologies import Chip

# The share of a chip's peak that is assumed where no compiler says anything: hand-written kernels on TPUs
# (flash attention with heads of 64 fills half of a matrix unit at most), and all of a GPU's work.
EFFICIENCY = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one run on one device, which is as long as all take.

    Attributes:
      compute: fusions, by the compiler's cycles; or a roofline, where there are none.
      kernels: hand-written kernels, at EFFICIENCY of the peak.
      collectives: at the full speed of all links.
      flops: that the mathematics asks for, without what is done twice.
      peak: FLOPs per second of the chip.
      basis: what it rests on, in words.
    """

    compute: float
    kernels: float
    collectives: float
    flops: float
    peak: float
    basis: str

    @property
    def least(self) -> float:
        """If all communication goes on while something is computed."""
        return max(self.compute + self.kernels, self.collectives)

    @property
    def most(self) -> float:
        """If none does."""
        return self.compute + self.kernels + self.collectives

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the useful share of the peak, at `most`."""
        return self.flops / (self.most * self.peak) if self.most else float('nan')


def estimate(
    chip: Chip,
    *,
    cycles: float,
    flops: float,
    again: float,
    kernel_flops: float,
    accessed: float,
    sent: float,
) -> Estimate:
    """From a program's figures on one device; see `tools.planning.Compiled`."""
    if chip.clock and cycles:
        compute, kernels = cycles / chip.clock, kernel_flops / (EFFICIENCY * chip.flops)
        basis = (
            f"XLA's estimated cycles at {chip.clock / 1e9:g} GHz; kernels at {EFFICIENCY:.0%} of "
            f'{chip.flops / 1e12:g} TFLOP/s, an assumption; '
            f'collectives at {chip.link / 1e9:g} GB/s per device'
        )
    else:
        compute = max(flops / (EFFICIENCY * chip.flops), accessed / chip.bandwidth)
        kernels = 0.0
        basis = (
            f'no estimate by the compiler: all FLOPs at {EFFICIENCY:.0%} of {chip.flops / 1e12:g} TFLOP/s, '
            f'an assumption; '
            f'collectives at {chip.link / 1e9:g} GB/s per device'
        )
    return Estimate(
        compute=compute,
        kernels=kernels,
        collectives=sent / chip.link,
        flops=flops - again,
        peak=chip.flops,
        basis=basis,
    )
