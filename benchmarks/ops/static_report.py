"""What the Triton kernels take on GPUs that need not be here: python -m benchmarks.ops.static_report

Every kernel that R50x1 and R152x4 launch, compiled for sm_80, sm_90 and sm_100: registers per thread, shared memory
per block, bytes of registers spilled, instructions in fp64, the bytes it moves at least and the time that takes at
4.1 TB/s, 85 % of an H200's memory bandwidth. Nothing is run, nothing is measured.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from benchmarks.compiled import CAPABILITIES, compiled
from benchmarks.ops.static_cases import CASES, NETWORKS, StaticCase
from bitfast.ops._triton import recorded

BYTES_PER_S = 4.1e12


@dataclass
class Row:
    """One kernel of one case for one target; `kernel` ends in its file's name where that tells algorithms apart."""

    op: str
    network: str
    shape: str
    kernel: str
    target: str
    num_warps: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    fp64_instructions: int
    moved_bytes: int
    floor_us: float


def rows(case: StaticCase, network: str, capabilities=CAPABILITIES) -> list[Row]:
    """Those of one case; a kernel that it launches twice alike is listed once."""
    with recorded() as launches:
        case.call()
    found = []
    for launch in launches:
        moved = case.moved_bytes or sum(t.nbytes for t in _distinct(launch.arguments))
        for capability in capabilities:
            used = compiled(launch, capability)
            row = Row(
                op=case.op,
                network=network,
                shape=case.shape,
                kernel=f"{launch.kernel.__module__.rpartition('.')[2]}.{launch.kernel.__name__}",
                target=f"sm_{capability}",
                num_warps=launch.num_warps,
                registers=used.registers,
                shared_bytes=used.shared_bytes,
                spill_bytes=used.spill_bytes,
                fp64_instructions=used.fp64_instructions,
                moved_bytes=moved,
                floor_us=round(moved / BYTES_PER_S * 1e6, 2),
            )
            if row not in found:
                found.append(row)
    return found


def show(row: Row) -> None:
    print(
        f"{row.op:22} {row.network:7} {row.shape:22} {row.kernel:34} {row.target:7} {row.num_warps:3} warps"
        f" {row.registers:4} registers {row.shared_bytes:6} B shared {row.spill_bytes:4} B spilled"
        f" {row.fp64_instructions:3} fp64 {row.moved_bytes / 1e6:9.2f} MB {row.floor_us:9.2f} us",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [function.__name__ for function in CASES]
    parser.add_argument("--ops", nargs="+", choices=names, default=names)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--representative", action="store_true", help="only what the default tests compile")
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args(argv)
    found = []
    for function in CASES:
        for network in options.networks if function.__name__ in options.ops else ():
            for case in function(network):
                if case.representative or not options.representative:
                    for row in rows(case, network):
                        show(row)
                        found.append(row)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in found], file, indent=1)


def _distinct(arguments: tuple) -> list:
    return list({id(t): t for t in arguments if hasattr(t, "nbytes")}.values())


if __name__ == "__main__":
    main()
