"""`rorqual doctor`"""

from __future__ import annotations

from rorqual.cli.settings import Placement, Settings, check_device, read


def doctor(settings: Settings = None) -> None:
    """Say what this machine is to Rorqual: cores, memory, versions, torch's build, and what would make it faster.

    Keys: device=cpu (is tried), dtype=float32 (its speed is measured).
    """
    chosen = read(Placement, settings)
    check_device(chosen.device)

    from rorqual.cli.accounts import lines
    from rorqual.cli.checkup import advice, facts

    print(lines(facts(chosen.device, chosen.dtype)))
    print("\nWhat would make it faster:")
    for line in advice() or ["nothing that this check knows of"]:
        print(f"- {line}")
