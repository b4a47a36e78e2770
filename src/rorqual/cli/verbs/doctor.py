"""`rorqual doctor`"""

from __future__ import annotations

from rorqual.cli.settings import Placement, Settings, check_device, read


def doctor(settings: Settings = None) -> None:
    """Check this machine, and suggest what would make it faster.

    Shows cores, memory, package versions, torch's build and the speed of a matrix product.

    Keys: device=cpu, dtype=float32 (the device and type of the matrix product that is timed).
    """
    chosen = read(Placement, settings)
    check_device(chosen.device)

    from rorqual.cli.accounts import lines
    from rorqual.cli.checkup import advice, facts

    print(lines(facts(chosen.device, chosen.dtype)))
    print("\nWhat would make it faster:")
    for line in advice() or ["nothing found"]:
        print(f"- {line}")
