"""The command `rorqual doctor`."""

from __future__ import annotations

from rorqual.cli.settings import DeviceSettings, Settings, check_device, parse_settings


def doctor(settings: Settings = None) -> None:
    """Show facts about this machine, and suggest how to make Rorqual faster.

    Shows cores, memory, package versions, torch's build and the speed of a matrix product.
    """
    chosen = parse_settings(DeviceSettings, settings)
    check_device(chosen.device)

    from rorqual.cli.doctor_report import machine_facts, setup_advice
    from rorqual.cli.inspecting import align_columns

    print(align_columns(machine_facts(chosen.device, chosen.dtype)))
    print("\nHow to make it faster:")
    for line in setup_advice() or ["nothing found"]:
        print(f"- {line}")
