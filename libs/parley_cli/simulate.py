"""`parley simulate`: the contract under faults worse than a real cluster's, on virtual time, by seeds."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import click
from click.core import ParameterSource

from chassis.testing.faults import RATES
from parley_cli.connection import examples
from parley_cli.failures import SetupError
from parley_simulation.plan import NO_FAULTS, USERS_MAX, Plan, Scene
from parley_simulation.runs import cores, run, run_many, smallest
from parley_simulation.shrink import TRIES_MAX
from parley_simulation.story import shortest, steps
from parley_simulation.totals import ENOUGH_SEEDS, STEPS, Totals

_TOLD_MAX = 3  # violations that are made small and told; the others are counted and named
_PROGRESS_SECONDS = 2.0
_HOUR, _DAY = 3600.0, 86_400.0


def _kinds(text: str) -> frozenset[str]:
    """Return the kinds of faults that a list names. A click type."""
    kinds = frozenset(kind.strip() for kind in text.split(",")) if text != NO_FAULTS else frozenset()
    if unknown := kinds - RATES.keys():
        raise click.BadParameter(f"no such fault: {', '.join(sorted(unknown))}; there are: {', '.join(RATES)}")
    return kinds


@click.command(
    short_help="Check the delivery contract under simulated faults.",
    epilog=examples(
        "parley simulate --seeds 500",
        "parley simulate --seeds 5000 --world store",
        "parley simulate --seed 7 --trace",
        "parley simulate --world store --seed 7 --faults 'process crashed,slow' --users 2",
    ),
)
@click.option("--seeds", type=click.IntRange(min=1), default=200, show_default=True, help="How many seeds, from --first on.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="The first of --seeds.")
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Run this one seed, and tell what it did.")
@click.option(
    "--world",
    type=click.Choice([scene.value for scene in Scene]),
    default=None,
    help="The whole system with devices on the SDK, or stores alone; both if not said.",
)
@click.option("--trace", is_flag=True, help="With --seed: print everything that happened.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=None, help="Processes at a time; as many as there are cores if not said."
)
@click.option(
    "--faults", type=_kinds, default=None, metavar="KINDS", help="Only these kinds, commas between them, or none; all if not said."
)
@click.option("--users", type=click.IntRange(2, USERS_MAX), default=None, help="Users; the seed's own number if not said.")
@click.option("--actions", type=click.IntRange(min=1), default=None, help="What each device does; likewise.")
@click.option("--seconds", type=click.IntRange(min=1), default=None, help="Virtual seconds of faults; likewise.")
def simulate(
    seeds: int,
    first: int,
    seed: int | None,
    world: str | None,
    trace: bool,
    jobs: int | None,
    faults: frozenset[str] | None,
    users: int | None,
    actions: int | None,
    seconds: int | None,
) -> None:
    """Run the real services and the SDK on virtual time, break what can break, and judge the delivery contract.

    Each seed draws who does what and which faults strike: crashes between any two steps, writes half applied or applied late, lost
    and regained partitions, zombies, cut and half-open links, clocks that jump. Equal seeds give equal runs, on every machine. A
    violation is made small, and told with the command that repeats it. Exit code 1 if the contract broke, or if there were so many
    seeds (100) that each kind of fault must have struck at each step, and one did not.
    """
    source = click.get_current_context().get_parameter_source
    if seed is not None and any(source(name) is ParameterSource.COMMANDLINE for name in ("seeds", "first")):
        raise SetupError("--seed runs one seed, --seeds and --first many: give one or the other")
    if trace and seed is None:
        raise SetupError("--trace needs --seed: the trace of one run fills pages")
    scenes = [Scene(world)] if world else list(Scene)
    without = None if faults is None else frozenset(RATES.keys() - faults)
    less = {"users": users, "actions": actions, "seconds": seconds, "without": without}
    less = {name: value for name, value in less.items() if value is not None}

    def plans() -> Iterator[Plan]:
        for number in range(first, first + seeds) if seed is None else [seed]:
            for scene in scenes:
                yield Plan.of(scene, number).with_less(less)

    if seed is None:
        _run_many(plans(), seeds * len(scenes), jobs or cores(), whole=faults is None and world is None)
    else:
        _run_each(plans(), trace=trace)


def _run_each(plans: Iterator[Plan], *, trace: bool) -> None:
    broken = False
    for plan in plans:
        report = run(plan, keep_trace=True)
        if trace:
            for line in report.trace:
                click.echo(line)
        click.echo(f"world     {plan.scene.value}")
        click.echo(f"contract  {report.verdict.line()}")
        click.echo(f"faults    {_counted(report.faults)}")
        click.echo(f"commands  {_counted(report.commands)}")
        click.echo(f"time      {_span(report.virtual_seconds)} of virtual time, {report.turns} turns of the loop")
        click.echo(f"trace     {report.digest}")
        if report.broken:
            broken = True
            _tell(plan)
    if broken:
        raise click.exceptions.Exit(1)


def _run_many(plans: Iterator[Plan], count: int, jobs: int, *, whole: bool) -> None:
    click.echo(
        f"{count} runs on {jobs} {'processes' if jobs > 1 else 'process'}; Ctrl-C ends early and tells what is known", err=True
    )
    totals, begin = Totals(), time.monotonic()
    told = begin
    interrupted = False
    try:
        for plan, report in run_many(plans, jobs):
            totals.add(plan, report)
            if report.broken:
                click.secho(f"broken: {plan.command()}: {report.broken[0][:200]}", fg="red", err=True)
            if (now := time.monotonic()) - told >= _PROGRESS_SECONDS:
                told = now
                rate = totals.runs / (now - begin)
                left = (count - totals.runs) / rate
                click.echo(
                    f"{totals.runs:>7} of {count}, {rate:.1f} a second, {len(totals.broken)} broken, {left:.0f} s to go", err=True
                )
    except KeyboardInterrupt:
        interrupted = True
    _show(totals, time.monotonic() - begin)
    for plan, report in islice(sorted(totals.broken, key=lambda item: (item[0].scene, item[0].seed)), _TOLD_MAX):
        click.echo(f"making {plan.command()} small ({TRIES_MAX} tries at most) ...", err=True)
        _tell(smallest(plan, report))
    missing = list(totals.missing()) if whole and not interrupted and len(totals.seeds) >= ENOUGH_SEEDS else []
    for what in missing:
        click.secho(f"not proven: {what}", fg="red", err=True)
    if interrupted:
        raise click.exceptions.Exit(130)
    if totals.broken or missing:
        raise click.exceptions.Exit(1)


def _show(totals: Totals, took_seconds: float) -> None:
    rate = len(totals.seeds) / took_seconds
    speed = totals.virtual_seconds / took_seconds
    click.echo(f"seeds       {len(totals.seeds)} in {totals.runs} runs, {rate:.1f} seeds/s")
    click.echo(f"time        {_span(totals.virtual_seconds)} of virtual time in {took_seconds:.1f} s, {speed:.0f} times as fast")
    for line in totals.verdict.by_guarantee():
        click.echo(line)
    click.echo(f"contract    {totals.verdict.line()}")
    click.echo(f"faults      {_counted(totals.faults)}")
    click.echo(f"commands    {_counted(totals.commands)}")
    for role, names in STEPS.items():
        for name in names:
            click.echo(f"{role:<11} {name}: {_counted(totals.struck(role, name)) or 'nothing'}")
    click.echo(f"traces      {totals.digest()}")
    color = "red" if totals.broken else "green"
    click.secho(f"violations  {len(totals.broken)}", fg=color, bold=True)


def _tell(plan: Plan) -> None:
    """Tell a plan's violation: the shortest story, what became of the message, how to see it again."""
    report = run(plan, keep_trace=True)
    story = shortest(report.broken)
    click.secho(f"\nseed {plan.seed} broke the contract: {story}", fg="red", bold=True)
    for line in steps(story, report):
        click.echo(f"    {line}")
    if len(report.broken) > 1:
        click.echo(f"and {len(report.broken) - 1} more of its kind or because of it")
    click.echo(f"again: {plan.command()}")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common() if count)


def _span(seconds: float) -> str:
    if seconds >= 2 * _DAY:
        return f"{seconds / _DAY:.1f} days"
    return f"{seconds / _HOUR:.1f} hours" if seconds >= 2 * _HOUR else f"{seconds / 60:.1f} minutes"
