"""The `rorqual` command. Errors that a user can fix are printed with a remedy and without a traceback."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import rorqual
from rorqual.cli.settings import VerbCommand
from rorqual.cli.verbs.attention import attention
from rorqual.cli.verbs.bench import bench
from rorqual.cli.verbs.chat import chat
from rorqual.cli.verbs.check import check
from rorqual.cli.verbs.compare import compare
from rorqual.cli.verbs.compute import compute
from rorqual.cli.verbs.distil import distil
from rorqual.cli.verbs.doctor import doctor
from rorqual.cli.verbs.eval import evaluate
from rorqual.cli.verbs.export import export
from rorqual.cli.verbs.failures import failures
from rorqual.cli.verbs.generate import generate
from rorqual.cli.verbs.import_ import import_
from rorqual.cli.verbs.inspect import inspect
from rorqual.cli.verbs.lab import lab
from rorqual.cli.verbs.merge import merge
from rorqual.cli.verbs.peft import peft
from rorqual.cli.verbs.plan import plan
from rorqual.cli.verbs.quantize import quantize
from rorqual.cli.verbs.quickstart import quickstart
from rorqual.cli.verbs.report import report
from rorqual.cli.verbs.serve import serve
from rorqual.cli.verbs.sparsify import sparsify
from rorqual.cli.verbs.teach import teach
from rorqual.cli.verbs.trace import trace
from rorqual.cli.verbs.train import train
from rorqual.core.errors import RorqualError

RESUMES = ("quickstart", "teach", "train", "distil", "distill", "lab", "export", "generate")
"""Commands that resume interrupted work when they are run again."""
WRITE_REMEDY = {
    errno.ENOSPC: "Free disk space and repeat the command. Files that were written completely are kept.",
    errno.EDQUOT: "Free some of your quota and repeat the command. Files that were written completely are kept.",
}
INTERRUPTED, REFUSED = 130, RorqualError.exit_status


@contextmanager
def report_errors(verb: Callable[[], str | None]) -> Iterator[None]:
    """Print user-fixable errors to standard error, and exit with an error code.

    Exceptions that a user cannot fix are bugs, so such exceptions propagate and show a traceback.
    """
    try:
        yield
    except RorqualError as error:
        _exit_with_error(f"rorqual: {error}", error.exit_status)
    except KeyboardInterrupt:
        resumes = verb() in RESUMES
        _exit_with_error("\nstopped; the same command resumes" if resumes else "\nstopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of standard output closed the pipe. Python would fail to flush standard output at exit.
        sys.stdout = None
        raise typer.Exit(0) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = WRITE_REMEDY.get(error.errno or 0, "Check the path and its permissions, or choose another folder.")
        _exit_with_error(f"rorqual: {where}{error.strerror or error}\n  {remedy}", REFUSED)


def _exit_with_error(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    raise typer.Exit(code) from None


class VerbGroup(TyperGroup):
    """The command group. `--help` lists the commands in the order in which a new user needs them."""

    def invoke(self, ctx: Any) -> Any:
        with report_errors(lambda: ctx.invoked_subcommand):
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(cls=VerbGroup, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rorqual {rorqual.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Build, train, evaluate and serve DeepSeek-style reasoning models."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


# Unknown options are passed to the command, whose error message explains the key=value syntax.
PAIRS = {"ignore_unknown_options": True}
VERBS = "rorqual.cli.verbs"
DISTIL_OPTIONS = {
    "Keys": "rorqual.factory.config:FactoryConfig",
    "Keys for a server": "rorqual.factory.config:RemoteAccess",
    "Keys of filters, such as filters.names=[]": "rorqual.factory.config:FilterConfig",
    "Keys of the command": f"{VERBS}.distil:DistilCommand",
}
OPTIONS = {
    "check": {"Keys": f"{VERBS}.check:CheckSettings"},
    "teach": {"Keys": "rorqual.teach.config:TeachConfig", "Keys of the command": f"{VERBS}.teach:TeachCommand"},
    "failures": {"Keys": f"{VERBS}.failures:FailuresSettings"},
    "train": {"Keys": f"{VERBS}.train:TrainCommand"},
    "distil": DISTIL_OPTIONS,
    "distill": DISTIL_OPTIONS,
    "eval": {"Keys": "rorqual.cli.eval_settings:EvalSettings"},
    "chat": {"Keys": "rorqual.cli.conversation:ChatSettings"},
    "generate": {
        "Keys": "rorqual.cli.generating:GenerateSettings",
        "Keys of sampling, also for each row": "rorqual.generate.schema:RowSampling",
    },
    "bench": {"Keys": "rorqual.cli.benching:BenchSettings"},
    "serve": {"Keys": f"{VERBS}.serve:ServeSettings"},
    "export": {"Keys": f"{VERBS}.export:ExportConfig"},
    "import": {"Keys": f"{VERBS}.import_:ImportConfig"},
    "merge": {"Keys": f"{VERBS}.merge:MergeConfig"},
    "sparsify": {
        "Keys": "rorqual.recipes.sparsify:SparsifyConfig",
        "Keys of the command": f"{VERBS}.sparsify:SparsifyCommand",
    },
    "attention": {"Keys": f"{VERBS}.attention:AttentionSettings"},
    "quantize": {"Keys": f"{VERBS}.quantize:QuantizeSettings"},
    "compute": {"Keys": f"{VERBS}.compute:ComputeSettings"},
    "peft": {"Keys": f"{VERBS}.peft:PeftConfig"},
    "inspect": {"Keys": "rorqual.cli.inspecting:InspectSettings"},
    "plan": {
        "Keys with --train": "rorqual.cli.planning:TrainPlanSettings",
        "Keys with --serve": "rorqual.cli.planning:ServePlanSettings",
        "Keys for a run": "rorqual.cli.planning:RunPlanSettings",
        "Keys for quickstart": "rorqual.cli.planning:QuickstartPlanSettings",
    },
    "compare": {"Keys": f"{VERBS}.compare:CompareSettings"},
    "doctor": {"Keys": "rorqual.cli.settings:DeviceSettings"},
}
"""For each command with `key=value` options: the headings in the command's help, each with the settings class whose fields
the help lists below the heading."""


def _add_command(name: str, verb: Any, example: str, *, hidden: bool = False) -> None:
    command = type(f"{name.capitalize()}Command", (VerbCommand,), {"options": OPTIONS.get(name, {})})
    settings = PAIRS if name in OPTIONS else None
    epilog = f"\b\nExample:\n  {example}"
    app.command(name, cls=command, epilog=epilog, hidden=hidden, context_settings=settings)(verb)


_add_command("quickstart", quickstart, "rorqual quickstart --size small --out runs/small")
CHECK = """printf 'text,label\\nWhere is my card?,card\\nI lost my PIN,pin\\n' > questions.csv && rorqual check questions.csv"""
_add_command("check", check, CHECK)
TEACH = (
    """for n in $(seq 60); do printf '{"text": "late parcel %s", "label": "delay"}\\n{"text": "lost parcel %s", "label": "loss"}\\n' $n $n; """
    "done > parcels.jsonl && rorqual teach parcels.jsonl base=runs/tiny minutes=0.2"
)
_add_command("teach", teach, TEACH)
_add_command("failures", failures, "rorqual failures runs/parcels")
_add_command("train", train, "rorqual train sft task=families size=tiny steps=20 out=runs/tiny")
DISTIL = "rorqual distil runs/tiny task=families problems=20 samples=2 max_tokens=64 keep=all out=runs/sampled"
_add_command("distil", distil, DISTIL)
_add_command("distill", distil, DISTIL, hidden=True)
_add_command("eval", evaluate, "rorqual eval runs/tiny task=families count=20")
_add_command("lab", lab, "rorqual lab zero --seeds 1 --budget 1 --out runs/lab-short")
_add_command("chat", chat, 'echo "add 12+34" | rorqual chat runs/tiny thinking=on')
GENERATE = (
    """printf '{"prompt": "add 12+34"}\\n{"prompt": "add 386+149", "max_tokens": 20}\\n' > prompts.jsonl && """
    "rorqual generate prompts.jsonl run=runs/tiny max_tokens=64 out=answers.jsonl"
)
_add_command("generate", generate, GENERATE)
_add_command("bench", bench, "rorqual bench runs/tiny batch=1,4 prompt=32 new=16 repeats=2")
_add_command("serve", serve, "rorqual serve runs/tiny port=8000")
_add_command("export", export, "rorqual export runs/tiny exports/tiny")
_add_command("import", import_, "rorqual import exports/tiny runs/imported")
MERGE = (
    'rorqual train sft task=families from=runs/tiny steps=5 tune.kind=lora "tune.targets=[q_b_proj, o_proj]" out=runs/lora && '
    "rorqual merge runs/lora runs/merged"
)
_add_command("merge", merge, MERGE)
_add_command("sparsify", sparsify, "rorqual sparsify runs/tiny runs/tiny-sparse index_topk=16 warmup=5 steps=5")
_add_command("attention", attention, "rorqual attention runs/tiny-sparse data=README.md length=64")
_add_command("quantize", quantize, "rorqual quantize runs/tiny dtype=int8 data=README.md length=64 max_kl=0.01")
COMPUTE = (
    'rorqual train sft task=families size=tiny steps=5 "model.stages.1.ffn.router={kind: zero, n_routed_experts: 12, '
    'zero_expert_num: 4, num_experts_per_tok: 2, expected_experts: 1.5}" out=runs/zero && '
    "rorqual compute runs/zero task=families count=8 max_tokens=40"
)
_add_command("compute", compute, COMPUTE)
_add_command("peft", peft, "rorqual peft runs/lora exports/lora")
_add_command("inspect", inspect, "rorqual inspect deepseek-v3")
_add_command("plan", plan, "rorqual plan deepseek-v3 --train tokens=14.8T hardware=h800 n=2048")
_add_command("report", report, "rorqual report runs/small")
_add_command("trace", trace, "rorqual trace runs/small/teacher")
_add_command("compare", compare, "rorqual compare runs/small/evals/before-auto.json runs/small/evals/after-auto.json")
_add_command("doctor", doctor, "rorqual doctor")


def main() -> None:
    """Run the command line. The signal SIGTERM is handled like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="rorqual")
