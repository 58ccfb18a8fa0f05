"""The Markdown of each part: a sentence of what was done, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from records import grid

from performance.base import MIB, Record
from performance.rates import DEFAULTS


def network(record: Record) -> str:
    """Rates and shares of the peak."""
    base = row_of(record, DEFAULTS)["voxels_per_s"]
    rows = [
        [
            row["name"],
            f"{row['flop'] / 1e3:.0f}",
            f"{row['voxels_per_s'] / base:.2f}",
            f"{share(record, row):.0%} of {'bf16' if row['bf16'] else 'fp32'}",
        ]
        for row in record["rows"]
    ]
    if "bm4d" in record:
        rows.append(["BM4D", "", f"{record['bm4d'] / base:.4f}", ""])
    peaks = ", ".join(f"{flop / 1e9:,.0f} GFLOP/s in {name}" for name, flop in record["peak"].items())
    return "\n\n".join(
        [
            f"A volume of {shape(record['shape'])} voxels. Rates are over that of MONAI's `SlidingWindowInferer` as it"
            f" is ({base / 1e3:,.0f} thousand voxels/s here). Peak, by the product of two square matrices: {peaks}."
            f" Each voxel counts once, though windows that overlap compute it more often. Tuned: {record['tuned']}.",
            grid(["", "kFLOP a voxel", "× MONAI as it is", "share of the peak"], rows),
        ]
    )


def fidelity(record: Record) -> str:
    """Fast paths against the plain one."""
    rows = [
        [r["name"], f"{r['psnr_difference']:+.5f}", f"{r['largest']:.4f}", f"{r['rms']:.5f}"] for r in record["rows"]
    ]
    told = (
        f"Against the whole volume in plain fp32 passes (one: {record['psnr']:.2f} dB), base weights, brain"
        " phantom under Gaussian noise of 25/255. The score's differences are in noise standard deviations."
    )
    return f"{told}\n\n{grid(['', 'PSNR, dB', 'largest difference', 'RMS difference'], rows)}"


def size(record: Record) -> str:
    """Cost against size."""
    first = record["volumes"][0]["voxels_per_s"]
    rows = [
        [shape(r["shape"]), f"{r['voxels_per_s'] / first:.2f}", f"{beside(r) / MIB:,.0f}"] for r in record["volumes"]
    ]
    streams = [
        [shape(r["shape"]), f"{r['voxels_per_s'] / record['streams'][0]['voxels_per_s']:.2f}",
         f"{r['peak_bytes'] / MIB:,.0f}"]
        for r in record["streams"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            "`Denoiser` as the command uses it (two orientations, step length by SURE), each volume in a process"
            f" of its own, which has {record['volumes'][0]['before_bytes'] / MIB:,.0f} MiB before it is given one.",
            grid(["voxels", "voxels/s, over the first's", "peak memory − input − output, MiB"], rows),
            "One pass of the network, planes from a generator, answers thrown away; one process, in this order:",
            grid(["planes", "voxels/s, over the first's", "peak memory, MiB"], streams),
        ]
    )


def job(record: Record) -> str:
    """Whole job and stages."""
    head = ["", *(shape(row["shape"]) for row in record["rows"])]
    stages = sorted(
        {stage for row in record["rows"] for stage in all_stages(row)},
        key=lambda stage: -all_stages(record["rows"][-1]).get(stage, 0.0),
    )
    rows = [[s, *(f"{all_stages(r).get(s, 0) / r['process_s']:.1%}" for r in record["rows"])] for s in stages]
    rows.append(["**whole job over network**", *(f"**{over_network(r):.2f}**" for r in record["rows"])])
    starts = [[f"`{s['name']}`", f"{s['wall_s']:.2f}", f"{s['ratio']:.1f}"] for s in record["starts"]]
    return "\n\n".join(
        [
            "`n2s-med denoise --adapt 0` of a series, from the start of the process to its end, share of the time; the"
            " network's stage is what it takes for the volume, with two orientations. What other processes do beside a"
            " stage counts where it is waited for. The long series is the short one there and back again.",
            grid(head, rows),
            "Start-up of the command, the shortest of several; `inspect` reads a series of 32 slices.",
            grid(["", "wall time, s", "CPU time over that of `python -c pass`"], starts),
        ]
    )


def training(record: Record) -> str:
    """Rates of training."""
    rows = [
        ["MONAI: CacheDataset, RandSpatialCropSamplesd, SupervisedTrainer, fp32, plain UNet", "1.00"],
        ["ours", f"{record['ours'] / record['monai']:.2f}"],
    ]
    told = f"Steps of {record['patches']} patches of {record['patch']}³, from crop to updated weights."
    return f"{told}\n\n{grid(['', 'voxels/s over MONAI'], rows)}"


def quality(record: Record) -> str:
    """Quality against time."""
    rows_of = {row["name"]: row for row in record["rows"]}
    bm4d, base = rows_of["BM4D"], rows_of["base weights as they are"]
    rows = [
        [r["name"], f"{r['psnr']:.2f}", f"{r['cpu_s'] / bm4d['cpu_s']:.3f}", _gain(r, base)] for r in record["rows"]
    ]
    reached = [r["cpu_s"] / bm4d["cpu_s"] for r in record["rows"][1:] if r["psnr"] >= bm4d["psnr"]]
    verdict = f"{min(reached):.3f} of BM4D's own" if reached else "more than was given here"
    return "\n\n".join(
        [
            f"Brain phantom, {shape(record['shape'])} voxels, Gaussian noise of 25/255, the level known. CPU time of"
            " all threads, with the denoising.",
            grid(["", "PSNR, dB", "CPU time over BM4D's", "dB gained per second of adapting"], rows),
            f"**Time to BM4D's quality: {verdict}.**",
        ]
    )


def _gain(row: Record, base: Record) -> str:
    extra = row["cpu_s"] - base["cpu_s"]
    return f"{(row['psnr'] - base['psnr']) / extra:.3f}" if row["steps"] and extra > 0 else ""


def kinds(record: Record) -> str:
    """Where the network's time goes."""
    rows = [[kind, f"{share:.0%}"] for kind, share in record["shares"].items()]
    told = "The streamed network, two orientations, by kind of operation (`torch.profiler`, time of each itself)."
    return f"{told}\n\n{grid(['', 'share of the time'], rows)}"


def gpu(record: Record) -> str:
    """The same on a GPU."""
    if "rates" not in record:
        return "No GPU was at hand in this run."
    rows = [[r["name"], shape(r["shape"]), f"{r['voxels_per_s'] / 1e6:,.1f}"] for r in record["volumes"]]
    return "\n\n".join(
        [
            f"{record['name']}. {network(record['rates'])}",
            "`Denoiser` from memory to memory, two orientations:",
            grid(["", "voxels", "million voxels/s"], rows),
        ]
    )


# -- figures that goals and the page on scaling need too ---------------------------------------------------


def row_of(record: Record, name: str) -> Record:
    """The row of this name."""
    found: Record = next(row for row in record["rows"] if row["name"] == name)
    return found


def share(record: Record, row: Record) -> float:
    """Share of the peak of the row's number type."""
    return float(row["voxels_per_s"] * row["flop"] / record["peak"]["bf16" if row["bf16"] else "fp32"])


def beside(row: Record) -> float:
    """Peak memory without input and output, in bytes."""
    return float(row["peak_bytes"] - 2 * row["input_bytes"])


def growth(record: Record) -> float:
    """Memory of the longest stream over that of the shortest."""
    peaks = [row["peak_bytes"] for row in record["streams"]]
    return float(peaks[-1] / peaks[0])


def evenness(record: Record) -> float:
    """Lowest over median rate of the volumes."""
    found = [row["voxels_per_s"] for row in record["volumes"]]
    return float(min(found) / statistics.median(found))


def over_network(row: Record) -> float:
    """Whole job over its network."""
    return float(row["process_s"] / row["stages"]["network"])


def all_stages(row: Record) -> dict[str, float]:
    """The stages and what the process took before and after them."""
    stages = dict(row["stages"])
    stages["other"] += row["process_s"] - sum(stages.values())
    return stages


def shape(sizes: Sequence[int]) -> str:
    """``512 × 512 × 300``."""
    return " × ".join(str(n) for n in sizes)
