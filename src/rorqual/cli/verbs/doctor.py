"""The command `rorqual doctor`."""

from __future__ import annotations

from rorqual.cli.settings import Placement, Settings, check_device, read


def doctor(settings: Settings = None) -> None:
    """Show facts about this machine, and suggest how to make Rorqual faster.

    Shows cores, memory, package versions, torch's build and the speed of a matrix product.
    """
    chosen = read(Placement, settings)
    check_device(chosen.device)

    from rorqual.cli.accounts import columns
    from rorqual.cli.checkup import machine_facts, setup_advice

    print(columns(machine_facts(chosen.device, chosen.dtype)))
    print("\nHow to make it faster:")
    for line in setup_advice() or ["nothing found"]:
        print(f"- {line}")
